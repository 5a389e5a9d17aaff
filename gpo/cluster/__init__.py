"""Ray: start or join it, hold places on it, bring files to its nodes, hand a run to it as a job."""

"""GPOTrainer, and the training stage: rows of an iteration in, master weights and a checkpoint out."""

"""Answers from a policy: prompts, vLLM engines in Ray actors, weight publishing and the canary.

This package knows nothing of preferences or training; `gpo` puts it together with `reward`.
Importing it imports neither torch, vllm nor ray.
"""

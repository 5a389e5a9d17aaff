"""Measures of a trained policy on held-out prompts: win rates with intervals, cycles, divergence."""

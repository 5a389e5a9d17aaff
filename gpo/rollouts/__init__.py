"""Generate and score: the prompts of an iteration become shards of rows with K answers, their table and targets."""

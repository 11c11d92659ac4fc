"""Models that transformers lacks and whose checkpoints are continued."""

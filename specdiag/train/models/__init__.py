"""Models: those that transformers builds, and those that it does not have."""

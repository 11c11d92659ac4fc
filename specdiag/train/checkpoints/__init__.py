"""Checkpoints of a run: found, checked, published."""

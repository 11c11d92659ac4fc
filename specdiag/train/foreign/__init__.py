"""Checkpoints of other programs, read so that a Trainer goes on from them with the optimizer's moments."""

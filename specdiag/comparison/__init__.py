"""Two checkpoints or reports against each other: what matches, what moved, how far and in which directions."""

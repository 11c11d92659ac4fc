"""Norms of live weights, logged during training."""

"""Quantised weights: which tensors are codes, which scales belong to them, and what values they make together."""

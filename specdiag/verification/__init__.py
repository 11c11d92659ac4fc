"""Verification: whether a merge, a conversion or a quantisation is what it claims to be."""

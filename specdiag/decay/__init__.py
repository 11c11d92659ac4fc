"""From exponents to weight-decay ratios: the assignment rules of the AlphaDecay paper."""

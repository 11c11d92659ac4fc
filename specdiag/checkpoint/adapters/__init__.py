"""Adapters: what is learnt beside the weights, by itself or applied to them."""

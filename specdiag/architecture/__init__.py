"""From names and shapes to roles, and how fused and stacked tensors are cut. The rules are data."""

"""From exponents to weight decay: the rules, the plan, and what its base value should be."""

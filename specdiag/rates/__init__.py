"""Learning rates for each module, fixed before a run (LLR, arXiv 2605.22297)."""

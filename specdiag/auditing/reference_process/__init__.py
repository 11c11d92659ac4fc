"""The process that builds transformers' own model without values. It imports nothing else of specdiag."""

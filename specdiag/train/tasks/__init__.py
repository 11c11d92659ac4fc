"""Tasks other than predicting the next token: each gives a `specdiag.train.data.Data`. Needs transformers."""

"""Optimizers whose weight decay follows a paper, and what they share."""

"""Rules that change the weight decay of an optimizer while it runs."""

"""Texts and tokens that a run is trained on."""

"""Untrusted text made safe, names and patterns, and checks of arguments with their refusals."""

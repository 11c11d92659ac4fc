"""Folders in which one model lies in pieces: which folder is which, and how its pieces are joined."""

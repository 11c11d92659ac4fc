"""Signals, address space and locks of this process."""

"""Runs: begun, continued, compared, swept."""

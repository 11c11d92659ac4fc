"""Figures of reports and plans, a module a kind. They draw what records and eigenvalues say and are never shown."""

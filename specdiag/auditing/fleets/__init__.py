"""Audits of many models: rows of one table, kept as they are made, and saved as parquet."""

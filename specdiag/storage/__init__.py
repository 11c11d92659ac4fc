"""Files beside a report, and whether a saved record can be true."""

"""Results kept by content: what was measured once of the same values with the same settings is not measured again."""

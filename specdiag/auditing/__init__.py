"""The auditor: what is wrong with a checkpoint, found in its report and its configuration."""

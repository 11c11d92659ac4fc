"""Tasks: data, batches and figures of merit."""

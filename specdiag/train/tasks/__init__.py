"""What is learned: data, batches and figures of merit of each task."""

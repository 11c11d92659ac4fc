"""Data and figures of merit of each task that is no language modelling."""

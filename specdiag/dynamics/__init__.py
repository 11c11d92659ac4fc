"""Weight norms predicted from lr, decay and optimizer alone: a random walk, in expectation and simulated."""

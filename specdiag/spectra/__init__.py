"""From one matrix to numbers: eigenvalues, tail exponents, their nulls, metrics. Numpy arrays in, plain numbers out."""

"""The cache: what frozen encoders see of the data, computed once."""

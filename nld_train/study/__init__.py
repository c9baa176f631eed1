"""Miniature ablations: what the paper says of its choices, tried on two CPU cores with several seeds."""

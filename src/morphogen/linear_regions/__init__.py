"""COUNT the linear pieces of a piecewise linear network, exactly."""

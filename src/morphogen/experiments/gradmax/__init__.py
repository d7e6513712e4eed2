"""GradMax: new units where the gradient is largest."""

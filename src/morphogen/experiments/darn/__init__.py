"""Deep autoregressive networks."""

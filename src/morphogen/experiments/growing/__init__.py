"""Growing neural network: features come and go while it trains."""

"""Going Deeper: an infinite meta-layer with a learned depth."""

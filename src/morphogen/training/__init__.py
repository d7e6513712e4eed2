"""One training loop with hooks, and proximal steps."""

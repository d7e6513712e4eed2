"""JUDGE: one function a number."""

"""Other people's training loops: one callback each, around the same `Controller`."""

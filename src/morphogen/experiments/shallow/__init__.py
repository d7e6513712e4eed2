"""From deep to shallow: an equivalent form as a maximum of shallow networks."""

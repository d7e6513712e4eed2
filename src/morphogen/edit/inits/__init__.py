"""How new units begin: constant values, or the gradient's choice."""

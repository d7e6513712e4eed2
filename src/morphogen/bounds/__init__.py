"""BOUND: two numbers for every value of a network that hold for every input of a box."""

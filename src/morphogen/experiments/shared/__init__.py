"""What several experiments need: data and tables over seeds."""

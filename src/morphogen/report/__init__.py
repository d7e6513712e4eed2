"""A `Report` as a page, as text, and live in a terminal. Nothing here runs a model."""

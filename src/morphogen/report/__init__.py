"""A `Report` as a page, as text, and live in a terminal. Nothing here runs a model."""

from morphogen.report.html import html
from morphogen.report.live import display
from morphogen.report.text import format_score, format_shape, latex, markdown

__all__ = ["display", "format_score", "format_shape", "html", "latex", "markdown"]

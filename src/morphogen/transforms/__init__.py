"""REWRITE: model -> (new model, Certificate); the given model is left as it was."""

from morphogen.transforms.compress import compress
from morphogen.transforms.freeze import freeze

TRANSFORMS = {"compress": compress, "freeze": freeze}

__all__ = ["TRANSFORMS", "compress", "freeze"]

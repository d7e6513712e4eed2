"""REWRITE: model -> (new model, Certificate); the given model is left as it was."""

from morphogen.transforms.freeze import freeze

TRANSFORMS = {"freeze": freeze}

__all__ = ["TRANSFORMS", "freeze"]

"""REWRITE: model -> (new model, Certificate); the given model is left as it was."""

from morphogen.transforms.approximate import approximate_shallow
from morphogen.transforms.compress import compress
from morphogen.transforms.freeze import freeze
from morphogen.transforms.regions import Regions, regions
from morphogen.transforms.shallow import shallow

TRANSFORMS = {"approximate_shallow": approximate_shallow, "compress": compress, "freeze": freeze, "shallow": shallow}

__all__ = ["TRANSFORMS", "Regions", "approximate_shallow", "compress", "freeze", "regions", "shallow"]

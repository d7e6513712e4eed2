"""Networks to start from; each is a function that returns ordinary modules."""

from morphogen.models.convnet import convnet
from morphogen.models.mlp import mlp
from morphogen.models.shape import depths_of, shape_of

__all__ = ["convnet", "depths_of", "mlp", "shape_of"]

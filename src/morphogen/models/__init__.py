"""Networks to start from; each is a function that returns ordinary modules."""

from morphogen.models.convnet import convnet
from morphogen.models.dagnet import dagnet
from morphogen.models.mlp import mlp
from morphogen.models.shape import depths_of, shape_of

__all__ = ["convnet", "dagnet", "depths_of", "mlp", "shape_of"]

"""Data in: a name, a file, a table or arrays become a `Dataset`."""

from morphogen.data.dataset import Dataset, from_arrays
from morphogen.data.from_frame import from_frame
from morphogen.data.load import load
from morphogen.data.named import NAMED
from morphogen.data.preparation import Preparation, fit_preparation, source
from morphogen.data.split import split

__all__ = ["NAMED", "Dataset", "Preparation", "fit_preparation", "from_arrays", "from_frame", "load", "source", "split"]

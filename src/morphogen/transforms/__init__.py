"""REWRITE: model -> (new model, Certificate); the given model is left as it was."""

from morphogen.transforms.approximate import approximate_shallow
from morphogen.transforms.compress import collapse, compress, drop_dead, merge_duplicates
from morphogen.transforms.freeze import fold_batchnorm, freeze
from morphogen.transforms.regions import Regions, regions
from morphogen.transforms.shallow import shallow

TRANSFORMS = {
    "approximate_shallow": approximate_shallow, "collapse": collapse, "compress": compress, "drop_dead": drop_dead,
    "fold_batchnorm": fold_batchnorm, "freeze": freeze, "merge_duplicates": merge_duplicates, "shallow": shallow,
}  # fmt: skip

__all__ = [
    "TRANSFORMS", "Regions", "approximate_shallow", "collapse", "compress", "drop_dead", "fold_batchnorm", "freeze",
    "merge_duplicates", "regions", "shallow",
]  # fmt: skip

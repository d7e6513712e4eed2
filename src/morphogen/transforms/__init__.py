"""REWRITE: model -> (new model, Certificate); the given model is left as it was, except by `link`
and `unlink`, which change it in place and can be taken back.
"""

from morphogen.transforms import compress, freeze
from morphogen.transforms.shallow import approximate, shallow

TRANSFORMS = {
    "approximate_shallow": approximate.approximate_shallow,
    "collapse": compress.collapse,
    "compress": compress.compress,
    "drop_dead": compress.drop_dead,
    "fold_batchnorm": freeze.fold_batchnorm,
    "freeze": freeze.freeze,
    "merge_duplicates": compress.merge_duplicates,
    "shallow": shallow.shallow,
}

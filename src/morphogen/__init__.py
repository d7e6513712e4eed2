"""Morphogen: a network's structure is something you learn, edit, rewrite exactly, judge and prove.

The public names are those of the stub beside this file, `__init__.pyi`; each is loaded when it is
first used.
"""

import lazy_loader

from morphogen.python_random import unmoved

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

with unmoved():
    import rich.style  # noqa: F401  (draws a number as it is imported, by the command or by scikit-learn)

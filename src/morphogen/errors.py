"""The errors that morphogen raises on purpose; those of torch and of Python pass through.

    MorphogenError
    ├── ShapeError      a size or an index does not fit the tensor it names
    ├── PlanError       an edit cannot be carried out; nothing was changed
    ├── Unsupported     an operation, a state or a module we do not understand
    ├── NotExact        a rewrite that promised to be exact is not
    ├── DataError       the data set cannot be used as it is
    └── RunError        an output folder or a checkpoint cannot be used as it is

Each message names the argument, the value seen and what to do about it. A plain `ValueError` comes
where another contract asks for it: text that is no JSON of a record, labels that scikit-learn's
estimators refuse, and a table that the exported preparation, which has none of this library, cannot
read.
"""


class MorphogenError(Exception):
    """Base of the errors that are ours."""


class ShapeError(MorphogenError, ValueError):
    """A size or an index does not fit the tensor it names."""


class PlanError(MorphogenError, ValueError):
    """An edit cannot be carried out; nothing was changed."""


class Unsupported(MorphogenError, NotImplementedError):
    """An operation, an optimizer state or a module that is not understood, hence refused."""


class NotExact(MorphogenError):
    """A rewrite that promised to keep the function did not keep it."""


class DataError(MorphogenError, ValueError):
    """The data set cannot be used as it is."""


class RunError(MorphogenError):
    """An output folder or a checkpoint cannot be used as it is."""

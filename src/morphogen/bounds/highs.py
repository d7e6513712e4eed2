"""A linear program in HiGHS: the least c . x for low <= x <= high, row_low <= matrix x <=
row_high.
"""

from importlib import import_module
from typing import Any

import numpy as np

from morphogen.deadline import NEVER, Deadline


def solver(
    c: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    matrix: np.ndarray,
    row_low: np.ndarray,
    row_high: np.ndarray,
    until: Deadline = NEVER,
    **options: object,
) -> tuple[Any, Any]:
    """(HiGHS with the program, silent and on one thread; its module). options: of HiGHS. Raises
    `OutOfTime`.
    """
    highs: Any = import_module("highspy")  # slow to load, and needed for programs alone
    program = highs.HighsLp()
    program.num_col_ = len(c)
    program.num_row_ = len(matrix)
    program.col_cost_ = c
    program.col_lower_ = low
    program.col_upper_ = high
    program.row_lower_ = row_low
    program.row_upper_ = row_high
    until.check()
    filled, where = np.nonzero(matrix)
    until.check()
    starts = np.cumsum(np.bincount(filled, minlength=len(matrix)))
    program.a_matrix_.format_ = highs.MatrixFormat.kRowwise
    program.a_matrix_.start_ = np.concatenate([[0], starts]).astype(np.int32)
    program.a_matrix_.index_ = where.astype(np.int32)
    program.a_matrix_.value_ = matrix[filled, where]
    until.check()
    instance = highs.Highs()
    for option, value in {"output_flag": False, "threads": 1, **options}.items():
        instance.setOptionValue(option, value)
    instance.passModel(program)
    return instance, highs

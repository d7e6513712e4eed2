"""A polytope {x in a box: rows x + offset >= 0}, asked by linear programs: its largest ball, the
least of a function on it.
"""

import numpy as np

from morphogen.bounds.highs import solver


class Polytope:
    """Kept in HiGHS, so that each question starts from the last answer.

    rows: (count, inputs + 1), the offset last; without it, of length 1 each. lower, upper: the box,
    (inputs,).
    """

    def __init__(self, rows: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> None:
        self.rows = rows
        self.inputs = rows.shape[1] - 1
        self.most = float((upper - lower).max())
        # one more variable, the radius of a ball: rows x - radius >= -offset; the box's sides are
        # rows here, too
        sides = np.concatenate([np.eye(self.inputs), -np.eye(self.inputs)])
        matrix = np.concatenate([rows[:, :-1], sides])
        matrix = np.concatenate([matrix, -np.ones((len(matrix), 1))], 1)
        ends = np.append(lower, 0.0), np.append(upper, self.most)
        row_low = np.concatenate([-rows[:, -1], lower, -upper])
        self.solver, self.highs = solver(
            np.zeros(self.inputs + 1),
            *ends,
            matrix,
            row_low,
            np.full(len(matrix), np.inf),
            presolve="off",
            primal_feasibility_tolerance=1e-10,
            dual_feasibility_tolerance=1e-10,
        )

    def ball(self) -> tuple[np.ndarray, float]:
        """(centre, radius) of the largest ball inside; a radius of 0 where there is none."""
        ball = self._solved(np.append(np.zeros(self.inputs), -1.0), self.most)
        return (np.zeros(self.inputs), 0.0) if ball is None else (ball[:-1], float(ball[-1]))

    def least(self, function: np.ndarray) -> tuple[float, np.ndarray | None]:
        """(the least value of function (inputs + 1,) inside, where); infinite where nothing is
        inside.
        """
        point = self._solved(np.append(function[:-1], 0.0), 0.0)
        return (
            (np.inf, None)
            if point is None
            else (float(function[:-1] @ point[:-1] + function[-1]), point[:-1])
        )

    def beyond(self, row: int, far: float) -> tuple[float, np.ndarray | None]:
        """(the least value of a row, where) when the row itself may fall to -far: below 0 where it
        is a facet.
        """
        self.solver.changeRowBounds(row, -self.rows[row, -1] - far, np.inf)
        least = self.least(self.rows[row])
        self.solver.changeRowBounds(row, -self.rows[row, -1], np.inf)
        return least

    def _solved(self, costs: np.ndarray, radius: float) -> np.ndarray | None:
        self.solver.changeColBounds(self.inputs, 0.0, radius)
        self.solver.changeColsCost(len(costs), np.arange(len(costs), dtype=np.int32), costs)
        self.solver.run()
        if self.solver.getModelStatus() != self.highs.HighsModelStatus.kOptimal:
            return None
        return np.asarray(self.solver.getSolution().col_value)

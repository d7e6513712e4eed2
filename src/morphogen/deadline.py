"""By when something must have ended: a moment on a clock, handed to whatever takes long,
`Deadline.after(seconds)`.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self


class OutOfTime(Exception):
    """A deadline has passed. Whoever set it catches this and says what is known by then: no user
    sees it.
    """


@dataclass(frozen=True)
class Deadline:
    """ends: on the clock `now`, in seconds; infinite for never. Work asks between its steps,
    `check`, and passes it on.
    """

    ends: float = math.inf
    now: Callable[[], float] = time.perf_counter

    @classmethod
    def after(cls, seconds: float, now: Callable[[], float] = time.perf_counter) -> Self:
        """So many seconds from now."""
        return cls(now() + seconds, now)

    def left(self) -> float:
        """Seconds, infinite where there is no end; at most 0 once it has passed."""
        return self.ends - self.now() if self.ends < math.inf else math.inf

    def check(self) -> None:
        """Raise `OutOfTime` once it has passed."""
        if self.left() <= 0:
            raise OutOfTime

    def within(self, seconds: float) -> "Deadline":
        """This one, or so many seconds from now, whichever is first."""
        return (
            self
            if seconds == math.inf
            else Deadline(min(self.ends, self.now() + seconds), self.now)
        )


NEVER = Deadline()


def deadline(seconds: float | Deadline) -> Deadline:
    """A number of seconds from now on, or the deadline that was given."""
    return seconds if isinstance(seconds, Deadline) else Deadline.after(seconds)

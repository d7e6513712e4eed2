"""One driver for every technique, `propagate(net, rules, state)`: it goes from step to step and
asks a table of rules what the technique makes of each.

A technique is such a table, from a class of steps to a rule, and a state that its rules read.
Another operation is one more rule in each table; what a table lacks is refused by name.

Source: the dictionaries of jax_verify, from an operation to a rule of one technique.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from morphogen.bounds.rules import classes, refuse
from morphogen.tracing.program import Program, Step

State = TypeVar("State")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Rules(Generic[State, Result]):
    """technique: its name, for messages. table: by class of steps, see `rules.classes`, the rule:
    (step, state) -> result.
    """

    technique: str
    table: Mapping[str, Callable[[Step, State], Result]]

    def of(self, step: Step) -> Callable[[Step, State], Result]:
        """The rule of the step's most special class. Raises `Unsupported` where none of its classes
        has one.
        """
        for name in classes(step):
            if name in self.table:
                return self.table[name]
        raise refuse(step, self.technique)


def propagate(
    net: Program,
    rules: Rules[State, Result],
    state: State,
    steps: Iterable[Step] | None = None,
) -> Iterator[tuple[Step, Result]]:
    """Each step with what its rule makes of it. Who asks puts it into the state before asking for
    the next one.

    steps: all of them in their order by default. Raises `Unsupported` at a step without a rule.
    """
    for step in net.forth() if steps is None else steps:
        rule = rules.of(step)
        yield step, rule(step, state)

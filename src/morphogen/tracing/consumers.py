"""Who reads a value, seen through the operations that let its units through: `consumers(...)`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from morphogen.tracing.trace import Node, Ref
from morphogen.tracing.traits import lets_through


@dataclass(frozen=True)
class Consumer:
    """node: what reads it. value: as which it does; passed: the operations on the way to that.
    first: whether it is the first argument of `node`.
    """

    node: Node
    value: Node
    passed: tuple[Node, ...]
    first: bool


def consumers(
    value: Node, users: Mapping[str, list[Node]], passed: tuple[Node, ...] = ()
) -> Iterator[Consumer]:
    """Every reader of a value that does more than let its units through, the output included.

    users: see `trace.users_of`.
    """
    for user in users.get(value.name, []):
        given = user.args[0] if user.args else None
        first = isinstance(given, Ref) and given.name == value.name
        if first and lets_through(value, user):
            yield from consumers(user, users, (*passed, user))
        else:
            yield Consumer(user, value, passed, first)

"""Parentheses and words of a text in the manner of SMT-LIB: `Tokens(text, name)`."""

import re
from functools import cached_property
from typing import NoReturn

from morphogen.errors import DataError, MorphogenError

# a comment, |a quoted name| and "a string" are one word each
_TOKEN = re.compile(r'[()]|;[^\n]*|\|[^|]*\||"[^"]*"|[^\s();]+')
_AHEAD = 6  # empty words behind the last one, so that looking ahead stays inside


class Tokens:
    """words: one after the other, without comments; "" is the end. name: what errors call the text.
    Where a word stands in the text is looked up when an error names it.
    """

    def __init__(self, text: str, name: str) -> None:
        self.text = text.removeprefix("\ufeff")
        self.name = name
        self.words = [word for word in _TOKEN.findall(self.text) if word[0] != ";"] + [""] * _AHEAD

    def fail(self, at: int, what: str, kind: type[MorphogenError] = DataError) -> NoReturn:
        """Raise with the line and the column of a token."""
        starts = (match.start() for match in _TOKEN.finditer(self.text) if match.group()[0] != ";")
        offset = next((start for place, start in enumerate(starts) if place == at), len(self.text))
        line = self.text.count("\n", 0, offset) + 1
        column = offset - self.text.rfind("\n", 0, offset)
        raise kind(f"{self.name}, line {line}, column {column}: {what}")

    def missing(self, at: int, opened: int) -> NoReturn:
        """Something else stands where a closing parenthesis should."""
        if not self.words[at]:
            self.fail(opened, "this '(' is never closed")
        self.fail(at, f"'{self.words[at]}' here; ')' was expected")

    def end(self, at: int) -> int:
        """The place of the ')' of the '(' at a place."""
        if at not in self.closes:
            self.fail(at, "this '(' is never closed")
        return self.closes[at]

    @cached_property
    def closes(self) -> dict[int, int]:
        """By the place of each '(' that of its ')'."""
        closes = {}
        stack = []
        for at, word in enumerate(self.words):
            if word == "(":
                stack.append(at)
            elif word == ")" and stack:
                closes[stack.pop()] = at
        return closes

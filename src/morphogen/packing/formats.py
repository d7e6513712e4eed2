"""Texts of numbers as integers, exactly: `Format`.

    fixed   a decimal with at most `decimals` digits after the point, of which zeros at the end are
            left out down to `least`: the integer is the decimal without its point
    float   what Python writes of a float64: the integer is its place among all floats
    levels  any text: the integer is its place in `texts`

Every number may have the same `prefix`, such as a blank. A text that its integer does not give back
letter by letter does not belong to the format.
"""

import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

FormatName = Literal["fixed", "float", "levels"]
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.([0-9]+))?")
MOST_DIGITS = 18  # an integer of so many digits fits into 64 bits
_SIGN = 1 << 63


@dataclass(frozen=True)
class Format:
    """prefix: of numbers. decimals, least: of "fixed". texts: of "levels"."""

    name: FormatName
    prefix: str = ""
    decimals: int = 0
    least: int = 0
    texts: tuple[str | None, ...] = ()


def parse(form: Format, texts: Sequence[str | None]) -> list[int | None]:
    """The integer of each, None where a text does not belong to the format."""
    if form.name == "levels":
        places = {text: place for place, text in enumerate(form.texts)}
        return [places.get(text) for text in texts]
    read = _READ[form.name]
    start = len(form.prefix)
    values = [None if text is None else read(form, text[start:]) for text in texts]
    return [
        value if value is not None and write(form, [value])[0] == text else None
        for value, text in zip(values, texts, strict=True)
    ]


def write(form: Format, values: Sequence[int]) -> list[str | None]:
    """The text of each integer."""
    if form.name == "levels":
        return [form.texts[value] for value in values]
    one = _WRITE[form.name]
    return [form.prefix + one(form, value) for value in values]


def fixed_for(counts: Mapping[str | None, int]) -> Format:
    """The fixed format for texts, of which each stands so often: by the most digits that are seen,
    unless very few texts have them.
    """
    seen: Counter[int] = Counter()
    prefix = prefix_of(counts)
    for text, count in counts.items():
        found = _DECIMAL.fullmatch((text or "")[len(prefix) :])
        if found:
            seen[len(found[1] or "")] += count
    if not seen:
        return Format("fixed", prefix)
    total = sum(seen.values())
    usual = [digits for digits in seen if seen[digits] * 200 >= total]
    mosts = {max(seen), max(usual)}
    forms = [Format("fixed", prefix, most, min(usual)) for most in mosts]
    return min(forms, key=lambda form: (missed(form, counts), form.decimals))


def prefix_of(texts: Iterable[str | None]) -> str:
    """The character other than a digit, a sign and a point with which all texts begin, if any."""
    first = {text[:1] for text in texts if text is not None}
    common = first.pop() if len(first) == 1 else ""
    return "" if common.isalnum() or common in "+-." else common


def missed(form: Format, counts: Mapping[str | None, int]) -> int:
    """How many distinct texts do not belong to the format."""
    return sum(value is None for value in parse(form, [*counts]))


def _read_fixed(form: Format, text: str) -> int | None:
    found = _DECIMAL.fullmatch(text)
    if not found:
        return None
    digits = found[1] or ""
    missing = form.decimals - len(digits)
    if missing < 0 or len(text) + missing > MOST_DIGITS:
        return None
    return int(text.replace(".", "") + "0" * missing)


def _write_fixed(form: Format, value: int) -> str:
    sign = "-" if value < 0 else ""
    digits = str(abs(value)).rjust(form.decimals + 1, "0")
    if not form.decimals:
        return sign + digits
    whole = digits[: -form.decimals]
    part = digits[-form.decimals :]
    kept = part[: form.least] + part[form.least :].rstrip("0")
    return f"{sign}{whole}.{kept}" if kept else sign + whole


def _read_float(form: Format, text: str) -> int | None:
    try:
        (pattern,) = struct.unpack("<Q", struct.pack("<d", float(text)))
    except ValueError:
        return None
    # negative floats stand in reverse; the result is their order, as a signed integer
    return _SIGN - 1 - int(pattern) if pattern >= _SIGN else int(pattern)


def _write_float(form: Format, value: int) -> str:
    pattern = _SIGN - 1 - value if value < 0 else value
    (number,) = struct.unpack("<d", struct.pack("<Q", pattern))
    return repr(number)


_READ: Mapping[str, Callable[[Format, str], int | None]] = {
    "fixed": _read_fixed,
    "float": _read_float,
}
_WRITE: Mapping[str, Callable[[Format, int], str]] = {
    "fixed": _write_fixed,
    "float": _write_float,
}

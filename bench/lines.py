"""How densely the code is written, a row a room: `python bench/lines.py [--longest N] [FOLDER]`.

Habits, not gates: at most 9 tokens a code line, at most 200 for the 90th percentile of functions. A
token is one of Python's own without comments, line ends and indentation; docstrings and blank lines
are no code.
"""

import argparse
import ast
import io
import tokenize
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "morphogen"
_LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


@dataclass(frozen=True)
class Function:
    """lines: from `def` to its end. tokens: without its docstring."""

    name: str
    lines: int
    tokens: int


@dataclass(frozen=True)
class File:
    """lines: that hold code. tokens: on them."""

    room: str
    lines: int
    tokens: int
    functions: list[Function]


def read(path: Path, root: Path) -> File:
    """What a file of Python holds."""
    text = path.read_text()
    tree = ast.parse(text)
    docs = _docstrings(tree)
    tokens = [
        token
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in _LAYOUT
    ]
    code = [token for token in tokens if token.start[0] not in docs]
    places = [token.start[0] for token in code]
    name = path.relative_to(root).as_posix()
    functions = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first, last = node.lineno, node.end_lineno or node.lineno
            count = sum(first <= place <= last for place in places)
            functions.append(Function(f"{name}:{node.name}", last - first + 1, count))
    parts = path.relative_to(root).parts
    spanned = set(chain.from_iterable(range(token.start[0], token.end[0] + 1) for token in code))
    return File(parts[0] if len(parts) > 1 else "(top)", len(spanned), len(code), functions)


def _docstrings(tree: ast.AST) -> set[int]:
    """The lines that documentation stands on."""
    spanned: set[int] = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            spanned.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return spanned


def percentile(numbers: list[int], share: float) -> int:
    """The number that so large a share lies at or below."""
    return sorted(numbers)[max(0, round(share * len(numbers)) - 1)] if numbers else 0


def row(room: str, files: list[File]) -> str:
    """Of a table in Markdown."""
    lines, tokens = sum(file.lines for file in files), sum(file.tokens for file in files)
    sizes = [function.tokens for file in files for function in file.functions]
    return (
        f"| {room} | {len(files)} | {lines:,} | {tokens / max(1, lines):.1f} | {len(sizes)} | "
        f"{percentile(sizes, 0.9)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=SOURCE)
    parser.add_argument("--longest", type=int, default=10, help="how many functions to name")
    chosen = parser.parse_args()
    files = [read(path, chosen.folder) for path in sorted(chosen.folder.rglob("*.py"))]
    rooms = defaultdict(list)
    for file in files:
        rooms[file.room].append(file)
    print(
        "| room | files | code lines | tokens a line | functions | 90th percentile, tokens "
        "|\n|---|--:|--:|--:|--:|--:|"
    )
    for room in sorted(rooms):
        print(row(room, rooms[room]))
    print(row("all", files))
    functions = sorted(
        chain.from_iterable(file.functions for file in files), key=lambda f: -f.lines
    )
    print("\n| function | lines | tokens |\n|---|--:|--:|")
    for function in functions[: chosen.longest]:
        print(f"| {function.name} | {function.lines} | {function.tokens} |")


if __name__ == "__main__":
    main()

"""Exported programs in files, written without the writer's paths and read without running anything
that is in them.

`torch.export.load` unpickles parts of an archive without a check, evaluates the sizes that its JSON
has as text, and calls any function that a node names. So what an archive holds is looked at first,
against the tables below, and what is not in them is refused by name. What was looked at is then put
into an archive of its own, in memory, and that one is loaded.
"""

import ast
import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram

from morphogen.errors import DataError
from morphogen.record import write_atomic

_SURE = "; if you know where it comes from and trust it, read it with trust=True"


def write_pt2(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write `model` as an exported program of a free batch size. Stack traces, which hold the
    writer's paths, are left out.
    """
    with torch.no_grad(), _quiet():
        program = torch.export.export(
            model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), strict=False
        )
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta = {
                    key: value
                    for key, value in node.meta.items()
                    if key in ("val", "tensor_meta", "nn_module_stack")
                }
        made = io.BytesIO()
        torch.export.save(program, made)
    write_atomic(path, made.getvalue())


def read_pt2(path: Path, trust: bool = False) -> ExportedProgram:
    """The program in a .pt2 file.

    trust: as `torch.export.load` reads it, which runs whatever code is in it. Otherwise raises
    `DataError` for a file that holds pickled objects other than tensors, compiled code, functions
    other than operators, or anything unknown.
    """
    try:
        with _quiet():
            return torch.export.load(path) if trust else torch.export.load(_looked_at(path))
    except DataError:
        raise
    except Exception as error:  # the archive raises many kinds
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(f"{path}: cannot be read as an exported program ({lines[0]})") from error


def _looked_at(path: Path) -> io.BytesIO:
    """A new archive of what is in the one at `path`, each part of it looked at."""
    new = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(new, "w", zipfile.ZIP_STORED) as archive:
        names = old.namelist()
        if len({name.lower() for name in names}) < len(names):
            raise DataError(f"{path}: two of its parts have one name{_SURE}")
        room = (
            ""
            if "serialized_exported_program.json" in names
            else names[0].partition("/")[0] + "/"
            if names
            else ""
        )
        parts = {name: old.read(name) for name in names}
        pickled = _pickled(parts, path)
        for name, content in parts.items():
            inside = name.removeprefix(room)
            check = next(
                (check for pattern, check in _PARTS.items() if re.fullmatch(pattern, inside)), None
            )
            if check is None or not name.startswith(room):
                raise DataError(
                    f"{path}: holds {name!r}, which is no part of an exported program that is "
                    f"known{_SURE}"
                )
            if name in pickled:
                check = _tensors
            try:
                archive.writestr(name, check(content))
            except DataError as error:
                raise DataError(f"{path}: {name!r} {error}{_SURE}") from error.__cause__
    new.seek(0)
    return new


def _pickled(parts: Mapping[str, bytes], path: Path) -> set[str]:
    """Weights and constants that the archive's own lists say are pickled."""
    pickled = set()
    for name, content in parts.items():
        if not name.endswith("_config.json"):
            continue
        folder = name.rpartition("/")[0]
        for entry in json.loads(content)["config"].values():
            if (
                not isinstance(entry["path_name"], str)
                or "/" in entry["path_name"]
                or "\\" in entry["path_name"]
            ):
                raise DataError(
                    f"{path}: {name!r} names a part outside its folder, "
                    f"{entry['path_name']!r}{_SURE}"
                )
            if entry["use_pickle"]:
                pickled.add(f"{folder}/{entry['path_name']}")
    return pickled


def _as_it_is(content: bytes) -> bytes:
    return content


def _tensors(content: bytes) -> bytes:
    """torch's own format: tensors in lists, tuples and dictionaries, which torch's restricted
    reader takes without running anything.
    """
    if content:
        try:
            torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        except Exception as error:
            raise DataError(
                "holds a pickle of more than tensors, which would run code as it is read"
            ) from error
    return content


def _objects(content: bytes) -> bytes:
    raise DataError("holds a pickled object, which would run code as it is read")


def _compiled(content: bytes) -> bytes:
    raise DataError("is compiled code")


def _graph(content: bytes) -> bytes:
    """A program in JSON, without the guards, which are Python source, and the notes on nodes, which
    nothing here reads.
    """
    program = json.loads(content)
    program["guards_code"] = []
    for key, value in _entries(program):
        if key in _TEXTS and value is not None:
            for text in value if isinstance(value, list) else [value]:
                if not isinstance(text, str):
                    raise DataError(f"has no text as {key!r}: {text!r}")
                _TEXTS[key](text)
        elif key == "metadata" and isinstance(value, dict):
            kept = value.get("nn_module_stack")
            value.clear()
            value.update({"nn_module_stack": kept} if isinstance(kept, str) else {})
    return json.dumps(program).encode()


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """All (key, value) pairs of a JSON value, the outer ones first."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _entries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner)


def _target(text: str) -> None:
    """What a node calls: an operator of torch's own, or arithmetic of sizes."""
    if re.fullmatch(r"torch\.ops\.(aten|prims)\.\w+\.\w+", text) and not text.startswith(_FILES):
        _, _, space, name, overload = text.split(".")
        if isinstance(
            getattr(getattr(getattr(torch.ops, space), name, None), overload, None), OpOverload
        ):
            return
    module, _, name = text.rpartition(".")
    if module == "_operator" and name in _ARITHMETIC:
        return
    if re.fullmatch(r"torch\.sym_[a-z]\w*|math\.[a-z]\w*", text):
        return
    raise DataError(f"calls {text!r}, which is no operator that a network needs")


_FILES = ("torch.ops.aten.from_file.",)
_ARITHMETIC = frozenset(
    "getitem add sub mul floordiv truediv mod neg pow eq ne lt le gt ge and_ or_ not_ "
    "pos abs".split()
)


def _size(text: str) -> None:
    """A size, which torch hands to sympy, which evaluates it: symbols, numbers and arithmetic."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"has a size that is no expression, {text[:80]!r}") from error
    # texts stand in Symbol('s0') alone, and powers of powers would take forever
    symbols = set[int]()
    small = set[int]()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "Symbol"
        ):
            symbols |= {id(part) for part in node.args}
        if (
            isinstance(node, ast.BinOp)
            and isinstance(node.right, ast.Constant)
            and node.right.value in range(9)
        ):
            small.add(id(node))
    for node in ast.walk(tree):
        fine = isinstance(node, _EXPRESSION)
        if isinstance(node, ast.Name):
            fine = node.id in _FUNCTIONS or re.fullmatch(r"[a-z]{1,4}\d+", node.id) is not None
        elif isinstance(node, ast.Call):
            fine = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
        elif isinstance(node, ast.BinOp):
            fine = isinstance(node.op, _ADDS) or (
                isinstance(node.op, ast.Pow) and id(node) in small
            )
        elif isinstance(node, ast.Constant) and id(node) in symbols:
            fine = re.fullmatch(r"\w+", str(node.value)) is not None
        elif isinstance(node, ast.Constant):
            fine = isinstance(node.value, (bool, int, float))
        if not fine:
            raise DataError(f"has a size that is more than arithmetic, {text[:80]!r}")


_EXPRESSION = (
    ast.Expression,
    ast.UnaryOp,
    ast.Compare,
    ast.BoolOp,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
    ast.boolop,
    ast.keyword,
    ast.expr_context,
)
_ADDS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
_FUNCTIONS = frozenset(
    "Symbol Integer Float Rational Add Mul Abs Max Min Mod PythonMod FloorDiv CleanDiv CeilDiv "
    "ModularIndexing Where CeilToInt FloorToInt TruncToInt RoundToInt ToFloat TruncToFloat "
    "IntTrueDiv FloatTrueDiv Eq Ne Lt Le Gt Ge And Or Not Identity".split()
)


def _name(text: str) -> None:
    """A name, which torch writes into the source that it makes of a graph."""
    if not re.fullmatch(r"\w*", text, re.ASCII):
        raise DataError(f"has a value with the name {text[:80]!r}, which is no identifier")


def _tree(text: str) -> None:
    """How inputs nest: tuples, lists and dictionaries; other kinds may name modules to import."""
    for key, value in _entries(json.loads(text)):
        if key == "type" and value not in (
            None,
            "builtins.tuple",
            "builtins.list",
            "builtins.dict",
        ):
            raise DataError(
                f"has inputs or outputs in a {value!r}; it can have them in tuples, lists and "
                "dictionaries"
            )
        if key == "context" and value is not None:
            keys = json.loads(value)
            if not all(
                isinstance(k, str) and re.fullmatch(r"\w+", k, re.ASCII)
                for k in ([] if keys is None else keys)
            ):
                raise DataError(
                    f"has inputs or outputs in a dictionary with the keys {value!r}; it can have "
                    "identifiers"
                )


_TEXTS: dict[str, Callable[[str], None]] = {
    **dict.fromkeys(("target", "as_operator"), _target),
    "expr_str": _size,
    **dict.fromkeys(("in_spec", "out_spec"), _tree),
    **dict.fromkeys(("name", "as_name", "forward_arg_names"), _name),
}
"""What torch calls, evaluates, imports or writes into source, by its key in the JSON."""

_PARTS: dict[str, Callable[[bytes], bytes]] = {
    r"archive_format|archive_version|byteorder|version|\.data/\w+": _as_it_is,
    r"models/[^/]+\.json|serialized_exported_program\.json": _graph,
    r"data/(weights|constants)/[^/]+_config\.json": _as_it_is,
    r"data/weights/weight_\d+|data/constants/tensor_\d+": _as_it_is,
    r"data/(weights|constants|sample_inputs)/[^/]+\.pt": _tensors,
    r"serialized_(state_dict|constants|example_inputs)\.(pt|json)": _tensors,
    r"data/constants/(custom|opaque)_obj_\d+": _objects,
    r"data/aotinductor/.*": _compiled,
    r"extra/[^/]+|extra_files/[^/]+": _as_it_is,
}
"""What may be in an archive, by the name of the part, and what looks at it."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Other people's deprecations are none of a user's business, nor is a traceback where one line
    is raised.
    """
    loggers = [
        logging.getLogger(name)
        for name in ("torch.export", "torch.export.pt2_archive._package", "torch._export")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

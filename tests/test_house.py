"""The house: every name in the documentation leads somewhere, nothing hides a module, no cycles,
and the command answers before torch is loaded.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections import abc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import get_args, get_origin, get_type_hints

import networkx as nx
import pytest

import morphogen as mg
from morphogen import errors
from morphogen.cli.fit import fit as cli_fit
from morphogen.cli.shallow import shallow as cli_shallow
from morphogen.fitting.problem import WIRINGS
from morphogen.layers.dag.dense import SOLVERS
from morphogen.layers.dag.module import WIRINGS as DAG_WIRINGS
from morphogen.layers.linked_op import KINDS
from morphogen.policies import POLICIES
from morphogen.training.compressible import MEASURES, instability
from morphogen.transforms.compress import RULES, RuleName
from morphogen.transforms.shallow.shallow import FORMS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "morphogen"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FILES = sorted(SOURCE.rglob("*.py"))
# names of operations, of a file and of a folder in the cache
OTHERS = {"morphogen.dag", "morphogen.sparse_dag", "morphogen.linked", "morphogen.json"}


def modules() -> list[str]:
    return [module.name for module in pkgutil.walk_packages(mg.__path__, "morphogen.")]


def resolved(name: str) -> bool:
    """Whether a dotted name is a module, or what stands in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("path", [*PAGES, *FILES], ids=lambda path: path.name)
def test_dotted_names_lead_somewhere(path: Path) -> None:
    names = set(re.findall(r"\bmorphogen(?:\.[A-Za-z]\w*)+\b(?![:/])", path.read_text()))
    names |= {f"morphogen.{name}" for name in re.findall(r"\bmg\.(\w+)", path.read_text())}
    rooms = {room.name for room in SOURCE.iterdir() if room.is_dir()}
    short = re.findall(r"`(\w+)((?:\.\w+)+)`", path.read_text())
    names |= {f"morphogen.{room}{rest}" for room, rest in short if room in rooms}
    files = {name for name in names if name.endswith((".py", ".md", ".lock"))}
    assert [name for name in sorted(names - files - OTHERS) if not resolved(name)] == []


def test_no_module_is_hidden_by_what_its_package_exports() -> None:
    for name in modules():
        importlib.import_module(name)
    for name in modules():
        package, _, child = name.rpartition(".")
        assert isinstance(getattr(sys.modules[package], child), ModuleType), name


def imports(path: Path) -> list[tuple[str, list[str]]]:
    """(module, names) of the imports of our own that run when a file is loaded."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("morphogen"):
            found.append((str(node.module), [alias.name for alias in node.names]))
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "bench").glob("*.py")), ids=lambda path: path.name)
def test_what_a_bench_imports_is_there(path: Path) -> None:
    for module, names in imports(path):
        for name in names:
            assert resolved(f"{module}.{name}"), name


def test_no_cycles() -> None:
    graph = nx.DiGraph()
    known = {"morphogen", *modules()}
    for path in FILES:
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        for module, names in imports(path):
            inner = [f"{module}.{child}" for child in names if f"{module}.{child}" in known]
            graph.add_edges_from((name, target) for target in inner or [module])
    assert list(nx.simple_cycles(graph)) == []


def test_private_names_stay_in_their_file() -> None:
    for path in FILES:
        for module, names in imports(path):
            assert not [name for name in names if name.startswith("_")], (path, module)


@pytest.mark.parametrize("verb", ["", "fit", "predict", "reproduce", "verify", "compress", "diff"])
def test_help_loads_no_torch(verb: str) -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from morphogen.cli.app import app\n"
        f"result = CliRunner().invoke(app, {[*verb.split(), '--help']})\n"
        "assert result.exit_code == 0, result.output\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "numpy", "onnx", "sklearn", "pandas", "matplotlib", "scipy", "numba"}
    assert heavy & set(loaded.stdout.split()) == set()


def test_the_package_is_light_until_it_is_used() -> None:
    code = (
        "import sys, morphogen\n"
        "heavy = {'onnx', 'sklearn', 'pandas', 'matplotlib', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "morphogen.Grow, morphogen.widths, morphogen.resize, morphogen.verify\n"
        "heavy.remove('torch')\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_public_names_can_be_used() -> None:
    assert "verify" in dir(mg)
    for name in mg.__all__:
        assert getattr(mg, name) is not None
    with pytest.raises(AttributeError, match="grwo"):
        mg.grwo  # noqa: B018


# what another contract asks for, or what is caught where it is raised
FOREIGN = {
    ("record.py", "ValueError"),
    ("estimator.py", "ValueError"),
    ("apply_preparation.py", "ValueError"),
    ("tables.py", "ValueError"),
    ("text_table.py", "ValueError"),
    ("interrupt.py", "KeyboardInterrupt"),
    ("run.py", "Left"),
    ("search.py", "ValueError"),
    ("variables.py", "TypeError"),
    ("checkpoint.py", "ValueError"),
    ("penalty.py", "ValueError"),
    ("relu_split.py", "IndexError"),
    ("widths.py", "AssertionError"),
    ("deadline.py", "OutOfTime"),
}


def test_errors_raised_on_purpose_are_ours() -> None:
    ours = {"Diverged", "Taken", *(name for name in vars(errors) if name[0].isupper())}
    for path in FILES:
        raised = re.findall(r"raise ([A-Z]\w+)", path.read_text())
        foreign = {(path.name, name) for name in raised if name not in ours}
        assert foreign <= FOREIGN, path


# what a user names freely: a width, a module, a file, a column, a device, a plot
FREE = set(
    "width module name names path before after source target test device data panel reason unseen "
    "fixed not_preserved ignore steps edits notes modules frozen rewrites metric valid run".split()
)
OTHER = (dict, abc.Mapping, abc.Callable)


def arguments(function: Callable[..., object]) -> dict[str, object]:
    """Each with its type, of a function or of what builds a class."""
    hints = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    return {name: kind for name, kind in hints.items() if name != "return"}


def public_functions() -> dict[str, Callable[..., object]]:
    functions = {}
    for name in mg.__all__:
        public = getattr(mg, name)
        if inspect.isfunction(public):
            functions[name] = public
        elif inspect.isclass(public) and not issubclass(public, Exception):
            functions[name] = public
            for method, function in inspect.getmembers(public, inspect.isfunction):
                if not method.startswith("_") and function.__module__.startswith("morphogen"):
                    functions[f"{name}.{method}"] = function
    return functions


@pytest.mark.parametrize("name", public_functions())
def test_a_string_that_chooses_is_a_literal(name: str) -> None:
    for argument, kind in arguments(public_functions()[name]).items():
        if str in (kind, *get_args(kind)) and get_origin(kind) not in OTHER:
            assert argument in FREE, f"{name}({argument}): a Literal, or a name that is free"


def choices(function: Callable[..., object], argument: str) -> tuple[str, ...]:
    """What an argument may be."""
    return get_args(arguments(function)[argument])


def test_literals_name_what_the_tables_have() -> None:
    assert choices(mg.MorphogenClassifier, "policy") == tuple(POLICIES)
    assert choices(mg.MorphogenClassifier, "wiring") == tuple(WIRINGS)
    assert choices(mg.shallow, "form") == choices(cli_shallow, "form") == tuple(FORMS)
    assert choices(mg.Dag, "activation") == tuple(KINDS)
    assert choices(mg.Dag, "wiring") == DAG_WIRINGS
    assert choices(mg.Dag, "solver") == SOLVERS
    assert choices(instability, "measure") == tuple(MEASURES)
    assert get_args(RuleName) == RULES
    for name in (*POLICIES, *WIRINGS):
        assert name in inspect.getsource(cli_fit)

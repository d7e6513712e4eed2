"""A listing of problems in several processes: those that are killed take nothing with them."""

import os
import signal
from pathlib import Path

import pytest

from morphogen.verification import instances
from morphogen.verification.instances import Result, run_instances


def solve(folder: Path, network: str, prop: str, seconds: float) -> Result:
    """A problem whose name says how often its process is killed."""
    tries = folder / f"{prop}.tries"
    before = len(tries.read_text()) if tries.exists() else 0
    tries.write_text("x" * (before + 1))
    if before < int(prop):
        os.kill(os.getpid(), signal.SIGKILL)
    return Result(network, prop, "unsat", 0.0, 1.0, before + 1)


@pytest.fixture
def listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(instances, "_one", solve)
    path = tmp_path / "instances.csv"
    path.write_text("".join(f"net.onnx,{prop},20\n" for prop in ("0", "1", "2", "00")))
    return path


def test_a_killed_process_costs_no_other_problem(listing: Path, tmp_path: Path) -> None:
    out, left = tmp_path / "results.csv", []
    found = {
        result.prop: result
        for result in run_instances(listing, out, jobs=2, callback=lambda _, n: left.append(n))
    }
    statuses = {prop: result.status for prop, result in found.items()}
    assert statuses == {"0": "unsat", "00": "unsat", "1": "unsat", "2": "error"}
    assert found["1"].boxes == 2  # tried once more
    assert "its process was ended twice (by signal 9)" in found["2"].said
    assert left == [3, 2, 1, 0]
    # the next call tries the error again, and nothing else
    again = []
    found = {
        result.prop: result
        for result in run_instances(listing, out, callback=lambda result, _: again.append(result))
    }
    assert [(result.prop, result.status) for result in again] == [("2", "unsat")]
    assert len(found) == 4
    assert len(out.read_text().splitlines()) == 5
    assert (tmp_path / "0.tries").read_text() == "x"
    assert run_instances(listing, out, jobs=2) == list(found.values())


def test_errors_of_other_listings_stay(listing: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.csv"
    header = "network,prop,status,seconds,bound,boxes,said\n"
    out.write_text(header + "other.onnx,p,error,1.0,nan,0,no\nnet.onnx,0,error,1.0,nan,0,no\n")
    listing.write_text("net.onnx,0,20\n")
    assert [(result.network, result.status) for result in run_instances(listing, out)] == [
        ("other.onnx", "error"), ("net.onnx", "unsat")
    ]  # fmt: skip

"""A folder has one run at a time, and a file one writer's content."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from morphogen import RunError
from morphogen.data.dataset import from_arrays
from morphogen.fitting.fit import fit
from morphogen.fitting.run import Options, run
from morphogen.folder import LOCK, claimed, claimed_free
from morphogen.record import write_atomic

HOLD = """
import sys
from pathlib import Path
from morphogen.folder import claimed
with claimed(Path(sys.argv[1])) as folder:
    (folder / "begun").write_text("")
    (folder / ".model.py.7-0123abcd.part").write_text("half")
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_that_another_process_has_is_refused_and_a_dead_one_is_taken_over(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    process = holder(folder)
    said = (
        rf"folder=.*run is being written by another run \(process {process.pid} on "
        rf"{socket.gethostname()}\)"
    )
    with pytest.raises(RunError, match=said), claimed(folder, used=True):
        pass
    assert json.loads((folder / LOCK).read_text())["pid"] == process.pid
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(RunError, match="already holds another run"), claimed(folder):
        pass
    with claimed(folder, used=True):
        assert json.loads((folder / LOCK).read_text()) == {
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        assert not [path for path in folder.iterdir() if path.suffix == ".part"]
    assert [path.name for path in folder.iterdir()] == ["begun"]


def test_a_dead_lock_alone_leaves_a_folder_free(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text('{"pid": 1, "host": "' + socket.gethostname() + '"}')
    with claimed_free(tmp_path) as folder:
        assert folder == tmp_path


def test_of_another_host_nobody_can_tell(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text('{"pid": 17, "host": "elsewhere"}')
    with (
        pytest.raises(
            RunError, match=r"process 17 on elsewhere\); if that run is over, delete .*run.lock"
        ),
        claimed(tmp_path),
    ):
        pass
    assert (tmp_path / LOCK).exists()


def test_what_cannot_be_read_as_a_lock_is_taken_over(tmp_path: Path) -> None:
    for text in ("", "{", "[1]", '{"pid": "x"}'):
        (tmp_path / LOCK).write_text(text)
        with claimed(tmp_path):
            pass
        assert not list(tmp_path.iterdir())


def test_many_at_once_get_a_folder_each(tmp_path: Path) -> None:
    start, found, done = threading.Barrier(8), [], threading.Barrier(8)

    def take() -> None:
        start.wait()
        with claimed_free(tmp_path / "deep" / "run") as folder:
            found.append(folder.name)
            done.wait()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(["run", *(f"run-{i}" for i in range(2, 9))])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_one_of_many_gets_one_folder_over_and_over(tmp_path: Path) -> None:
    """Claims and releases that intersect: two threads are never inside at once."""
    inside, most, folder = [0], [0], tmp_path / "run"

    def again() -> None:
        for _ in range(100):
            try:
                with claimed(folder):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    inside[0] -= 1
            except RunError:
                pass

    threads = [threading.Thread(target=again) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_failure_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path / "a" / "b"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    contents = [bytes([65 + i]) * 200_000 for i in range(8)]
    errors: list[Exception] = []

    def write(content: bytes) -> None:
        try:
            for _ in range(5):
                write_atomic(tmp_path / "file", content)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert (tmp_path / "file").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("way", ["run", "fit"])
def test_two_runs_at_once_and_copies_of_a_launcher_are_refused(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).normal(size=(40, 2))
    dataset = from_arrays(x, x[:, 0] > 0)
    folder = tmp_path / "run"
    call = {
        "run": lambda: run(dataset, Options(quiet=True), out=folder),
        "fit": lambda: fit(dataset, folder=folder),
    }[way]
    process = holder(folder)
    with pytest.raises(RunError, match="being written by another run|already holds another run"):
        call()
    process.kill()
    process.wait()
    folder = tmp_path / "other"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="WORLD_SIZE=2.*without torchrun"):
        call()
    assert not folder.exists()

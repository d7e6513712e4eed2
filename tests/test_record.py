"""Records become JSON and come back equal; files appear whole."""

from pathlib import Path

import pytest

from morphogen.record import (
    Certificate,
    Change,
    Layer,
    Report,
    Round,
    TableRow,
    from_json,
    to_json,
    write_atomic,
)


def test_a_report_survives_json() -> None:
    shape = (Layer("conv1", "conv", 8), Layer("output", "output", 10))
    value = Report(
        "a",
        "b",
        "regression",
        "RMSE",
        3,
        (Round(1, 0.5, 10, 1.5, "grow", 2.0, 1.0, 0.5, 100, shape),),
        (Change(1, 0.5, "conv1", 8, 16, "why", (50, 100)),),
        (TableRow("x", None, 3, None), TableRow("y", 0.5, None, 2.0, "n")),
        ("note",),
        {"torch": "2"},
    )
    assert from_json(Report, to_json(value)) == value


def test_a_certificate_survives_json() -> None:
    for box in (None, (0.0, 1.0)):
        value = Certificate("exact", 1e-9, box, True, "algebra")
        assert from_json(Certificate, to_json(value)) == value


def test_a_kind_that_there_is_none_of_is_refused() -> None:
    text = to_json(Certificate("exact", 1e-9, None, True, "algebra")).replace("exact", "sure")
    said = "kind is 'sure', not one of 'exact', 'bounds', 'measured'"
    with pytest.raises(ValueError, match=said):
        from_json(Certificate, text)


def test_a_crash_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    write_atomic(path, "old")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new and longer")
    assert path.read_text() == "old"

"""What the README shows runs as it stands."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_library_examples_run(capsys) -> None:
    code, depth = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    exec(depth, {})
    capsys.readouterr()
    exec(code, {})
    out = capsys.readouterr().out
    assert "conv1 (8):" in out
    assert "(1971, 7419) 0.0" in out
    assert "8 dead units dropped" in out


def test_the_rooms_exist() -> None:
    package = README.parent / "src" / "morphogen"
    for room in re.findall(r"^\| ((?:`[\w./]+`,? ?)+) \|", README.read_text(encoding="utf-8"), re.M):
        for name in re.findall(r"`([\w./]+)`", room):
            assert (package / name).exists(), name

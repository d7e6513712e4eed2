"""Shared fixtures. Tests run on one thread each, so that two workers do not fight over the
cores.
"""

import os
from pathlib import Path

import pytest
import torch

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
if "MORPHOGEN_DATA" not in os.environ and _SHARED.is_dir():
    os.environ["MORPHOGEN_DATA"] = str(_SHARED)

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def real_data() -> Path:
    """The folder with real data sets, or a skip that says why."""
    folder = os.environ.get("MORPHOGEN_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no real data: MORPHOGEN_DATA names no folder")
    return Path(folder)

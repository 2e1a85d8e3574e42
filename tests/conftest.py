"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real data sets; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("GR2_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not (folder / "beauty" / "interactions.parquet").is_file():
        pytest.skip(f"real data not found: {folder} (set GR2_DATA to the folder that holds beauty/ and games18/)")
    return folder

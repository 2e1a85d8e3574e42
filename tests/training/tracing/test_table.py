"""The file of traces."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr2.errors import DataError
from gr2.training.tracing.table import Trace, load_traces, save_traces

TRACE = Trace(3, 4, 7, (9, 7, 1), "because", (1, 0, 2), "rejection", 2)


def test_traces_come_back(tmp_path: Path) -> None:
    traces = [TRACE, Trace(0, 1, 2, (2,), "", (0,), "targeted", 1)]
    save_traces(tmp_path / "traces.parquet", traces)
    assert load_traces(tmp_path / "traces.parquet") == traces


def test_none_are_none(tmp_path: Path) -> None:
    save_traces(tmp_path / "traces.parquet", [])
    assert load_traces(tmp_path / "traces.parquet") == []


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "traces.parquet"
    with pytest.raises(DataError, match="not traces"):
        load_traces(path)
    pq.write_table(pa.table({"user": [1]}), path)
    with pytest.raises(DataError, match="not traces"):
        load_traces(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="not traces"):
        load_traces(path)

"""The start of a Ray cluster of this machine's own, and what is left of starts that fail."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import pytest

from gr2.errors import Gr2Error
from gr2.tokenizer.bulk.cluster import ray_pool

pytest.importorskip("ray.data")
psutil = pytest.importorskip("psutil")
# Ray's own: its settings warn of themselves.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.data\.context")
PATIENCE = "RAY_gcs_server_port_wait_time_s"


def parts() -> list[str]:
    """The names of Ray's processes below this one."""
    return [child.name() for child in psutil.Process().children(recursive=True) if child.name() == "gcs_server"]


def test_ray_that_does_not_start_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 100)  # too long a path for a socket
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(Gr2Error, match=r"Ray cannot be started on this machine: .*AF_UNIX"), ray_pool(1):
        pass


def test_starts_that_fail_leave_no_process_and_say_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(PATIENCE, "0")
    with pytest.raises(Gr2Error, match=r"Ray cannot be started on this machine: Timed out"), ray_pool(1):
        pass
    assert not parts()
    assert sum("started again" in record.message for record in caplog.records) == 2


def test_a_start_that_fails_is_followed_by_one_that_does_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(PATIENCE, "0")

    class Patient(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            os.environ[PATIENCE] = "30"

    patient, log = Patient(), logging.getLogger("gr2.tokenizer.bulk.own_cluster")
    log.addHandler(patient)
    try:
        with ray_pool(1) as pool:
            assert pool.workers == 1
    finally:
        log.removeHandler(patient)
    assert [record.message for record in caplog.records if "Timed out" in record.message]
    assert not parts()

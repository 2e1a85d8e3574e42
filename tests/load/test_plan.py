"""A load test that cannot be run is refused before it begins, and one that ends early keeps what it has."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gr2.bundle import Bundle
from gr2.cli.app import app
from gr2.errors import ConfigError, Gr2Error
from gr2.load.plan import Plan, check_target, run_plan
from gr2.load.requests import draw_requests
from gr2.load.run import run_step
from gr2.load.step import Step
from gr2.serving.server import Server

MakeBundle = Callable[..., Path]
NOBODY = "127.0.0.1:1"


@pytest.fixture
def server(make_bundle: MakeBundle) -> Server:
    """Started; stopped by the test, before it ends."""
    server = Server(make_bundle(), port=0)
    server.start()
    return server


@pytest.mark.parametrize(
    "settings",
    [
        {"rates": [20, 0]}, {"rates": [math.nan]}, {"rates": [math.inf]}, {"concurrency": [1, 0]},
        {"seconds": math.nan}, {"seconds": math.inf}, {"warmup": -1}, {"deadline": math.inf},
    ],
)  # fmt: skip
def test_no_step_runs_before_all_are_known_to_be_possible(settings: dict[str, list[float]]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        Plan(**settings)


def test_steps_are_named_by_their_rates_in_full() -> None:
    assert [each.name for each in Plan(rates=[0.5, 20, 12345.6], concurrency=[3]).steps()] == [
        "closed 3", "open 0.5/s", "open 20/s", "open 12346/s",
    ]  # fmt: skip


def test_a_target_that_does_not_answer_is_said_with_grpcs_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gr2.load.plan.PROBE_TIMEOUT", 0.2)
    with pytest.raises(Gr2Error, match=r"no server within 0\.2 s: .*refused"):
        check_target(NOBODY, b"")
    with pytest.raises(ConfigError, match="it is empty"):
        check_target("", b"")


def test_a_step_that_finds_no_server_is_the_last(server: Server, make_bundle: MakeBundle) -> None:
    requests = draw_requests(Bundle.load(make_bundle()), 20, history=5, candidates=8)
    steps = run_plan(server.address, requests, Plan(rates=[30, 31, 32], seconds=0.3, warmup=0.0))
    assert next(steps).codes["OK"] > 0
    server.stop(0)
    assert set(next(steps).codes) == {"UNAVAILABLE"}
    with pytest.raises(Gr2Error, match="no call of open 31/s found it"):
        next(steps)


def test_callers_that_find_no_server_do_not_ask_without_end() -> None:
    found = run_step(NOBODY, [b"request"], Step(concurrency=2, seconds=0.5, warmup=0.0))
    assert set(found.codes) == {"UNAVAILABLE"}
    assert 2 < found.calls < 30


def test_the_command_keeps_what_was_measured_before_the_server_went(
    server: Server, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    def stop() -> None:
        while server.metrics._observer.codes["OK"] < 5:
            time.sleep(0.01)
        server.stop(0)

    watcher = threading.Thread(target=stop)
    watcher.start()
    shape = ["--history", "5", "--candidates", "8", "--seconds", "0.5", "--warmup", "0"]
    steps = ["--concurrency", "1", "--rate", "30", "--rate", "31"]
    command = ["bench", "serve", "--address", server.address, "--bundle", str(make_bundle()), *shape, *steps]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path)])
    watcher.join()
    assert isinstance(result.exception, Gr2Error)
    assert "the server is gone" in str(result.exception)
    assert "closed 1" in result.output
    record = json.loads((tmp_path / "bench.json").read_text())
    assert [each["step"]["name"] for each in record["steps"]] == ["closed 1", "open 30/s"]
    assert record["steps"][0]["codes"]["OK"] >= 4


def test_processors_that_are_not_there_are_named(make_bundle: MakeBundle) -> None:
    result = CliRunner().invoke(app, ["bench", "serve", "--bundle", str(make_bundle()), "--pin", "9999"])
    assert isinstance(result.exception, ConfigError)
    assert "may run on the CPUs" in str(result.exception)
    assert "got 9999" in str(result.exception)

"""Real servers under load: ours, and one that stalls."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from gr2.bundle import Bundle
from gr2.cli.app import app
from gr2.errors import ConfigError, Gr2Error, RequestError
from gr2.load.plan import Plan, check_target, run_plan
from gr2.load.processor_time import listeners, processor_seconds
from gr2.load.requests import draw_requests
from gr2.load.run import run_step
from gr2.load.step import Generator, Step
from gr2.serving.server import Server
from gr2.v1 import reranker_pb2

MakeBundle = Callable[..., Path]
STALL = 0.4


@pytest.fixture(scope="module")
def bundle(make_bundle: MakeBundle) -> Bundle:
    return Bundle.load(make_bundle(width=2))


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Server]:
    server = Server(bundle, port=0)
    server.start()
    yield server
    server.stop(5)


def test_drawn_requests_are_seeded_valid_and_of_as_many_users(bundle: Bundle, server: Server) -> None:
    drawn = draw_requests(bundle, 40, history=5, candidates=8, users=3, seed=4)
    assert drawn == draw_requests(bundle, 40, history=5, candidates=8, users=3, seed=4)
    pasts = {tuple(reranker_pb2.RerankRequest.FromString(each).history.ints) for each in drawn}
    assert len(pasts) == 3
    for each in drawn[:5]:
        assert len(reranker_pb2.RerankResponse.FromString(_rerank(server.address, each)).ranking) == 8
    with pytest.raises(ConfigError, match="0\\.\\.1024 history"):
        draw_requests(bundle, 1, history=5000)


def _rerank(address: str, request: bytes) -> bytes:
    with grpc.insecure_channel(address) as channel:
        return channel.unary_unary("/gr2.v1.Reranker/Rerank")(request, timeout=10)


def test_open_and_closed_loops_of_a_real_server(bundle: Bundle, server: Server) -> None:
    requests = draw_requests(bundle, 300, history=5, candidates=8)
    plan = Plan(rates=[50], concurrency=[2], seconds=1.0, warmup=0.2)
    closed, opened = run_plan(server.address, requests, plan, generator=Generator(2))
    assert closed.codes == {"OK": closed.calls}
    assert opened.codes == {"OK": opened.calls}
    assert closed.throughput > opened.throughput
    assert abs(opened.calls - 50) < 5 * 50**0.5
    for each in (closed, opened):
        assert 0 < each.latency["p50"] <= each.latency["p99"] <= each.latency["max"] < 1000
        assert sum(each.phases.values()) == pytest.approx(1, abs=0.01)
        assert 0 < each.inside < each.latency["max"]
        assert each.server_cpu > 0


def test_an_open_loop_shows_the_requests_that_wait_behind_a_stall() -> None:
    stalled = []

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        if request == b"stall" and not stalled:
            stalled.append(time.sleep(STALL))
        return b""

    handlers = {"Rerank": grpc.unary_unary_rpc_method_handler(answer)}
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("gr2.v1.Reranker", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    requests = [b"a"] * 40 + [b"stall"] + [b"a"] * 400
    step = Step(rate=200, seconds=1.5, warmup=0, deadline=2.0)
    found = run_step(f"127.0.0.1:{port}", requests, step)
    server.stop(0).wait()
    # About 80 requests come due during the stall; one caller that waits for each answer would have seen one.
    slow = np.interp(100, found.curve, np.arange(len(found.curve)))
    assert stalled
    assert found.latency["max"] > 900 * STALL
    assert found.latency["p95"] > 100
    assert slow < 90


def test_targets_that_cannot_be_measured_are_refused(bundle: Bundle, server: Server) -> None:
    with pytest.raises(RequestError, match="does it serve the bundle"):
        check_target(server.address, b"\xff")
    with pytest.raises(ConfigError, match="no requests"):
        next(run_plan(server.address, [], Plan()))


def test_a_target_without_a_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gr2.load.plan.PROBE_TIMEOUT", 0.2)
    with pytest.raises(Gr2Error, match=r"127\.0\.0\.1:1: no server"):
        check_target("127.0.0.1:1", b"")


def test_the_listener_on_a_port_is_found(server: Server) -> None:
    assert listeners(server.address) == [os.getpid()]
    assert processor_seconds([os.getpid()]) == pytest.approx(sum(os.times()[:2]), abs=0.1)
    assert np.isnan(processor_seconds([]))


def test_the_command_writes_figures_and_picture(bundle: Bundle, server: Server, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    logged = tmp_path / "logged.jsonl"
    ids = bundle.catalog().ids
    logged.write_text(json.dumps({"history": ids[:3], "candidates": ids[3:9], "scores": [6, 5, 4, 3, 2, 1]}) + "\n")
    arguments = ["--requests", str(logged), "--concurrency", "1", "--seconds", "0.5", "--warmup", "0.1"]
    command = ["bench", "serve", "--address", server.address, "--out", str(tmp_path / "out"), *arguments]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "closed 1" in result.output
    record = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert record["steps"][0]["codes"] == {"OK": record["steps"][0]["calls"]}
    assert record["settings"]["file"] == str(logged)
    assert "history" not in record["settings"]
    assert (tmp_path / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")

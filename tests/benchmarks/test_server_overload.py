"""`make server-overload` finds answers that come late or never: by the server's own count beside its callers'."""

from __future__ import annotations

import dataclasses
import importlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from gr2.bundle import Bundle
from gr2.load.requests import draw_requests
from gr2.load.step import Generator
from gr2.load.worker import METHOD
from gr2.serving.observation import http_face
from gr2.serving.observing.exposition import Family, render
from gr2.serving.observing.http_face import HttpFace
from gr2.serving.server import Server

MakeBundle = Callable[..., Path]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`benchmarks.server.overload`, which is not installed, with a load that may run anywhere."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2]))
    found = importlib.import_module("benchmarks.server.overload")
    monkeypatch.setattr(found, "GENERATOR", Generator())
    monkeypatch.setattr(found, "WARMUP", 0.1)
    return found


def counting(module: Any, target: str, face: HttpFace) -> Any:
    server = module.Started(target, "gr2.load.lean_worker", lambda *_: (0, b""), os.getpid())
    return module.Counting(server, f"http://{face.address}/metrics")


@contextmanager
def answering(seconds: float) -> Iterator[tuple[str, HttpFace]]:
    """A server that answers whenever it has slept, whether or not that is asked for any more, and counts."""
    sent, lock = Family("gr2_requests_total", "counter", "").add(0, status="OK"), threading.Lock()
    count = 0

    def answer(request: bytes, _: grpc.ServicerContext) -> bytes:
        nonlocal count
        time.sleep(seconds)
        with lock:
            count += 1
            sent.samples.clear()
            sent.add(count, status="OK")
        return request

    server = grpc.server(ThreadPoolExecutor(64))
    service, name = METHOD.lstrip("/").split("/")
    handlers = {name: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    face = HttpFace("127.0.0.1", 0, metrics=lambda: render([sent]), healthy=lambda: True)
    face.start()
    yield f"127.0.0.1:{port}", face
    face.close()
    server.stop(None).wait()


def test_the_server_counts_as_its_callers_do(
    module: Any, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEADLINE", 1.0)
    bundle = Bundle.load(make_bundle())
    server = Server(bundle, port=0, metrics_port=0)
    server.start()
    face = http_face(server)
    assert face is not None
    face.start()
    step = counting(module, server.address, face).step(draw_requests(bundle, 50, history=5, candidates=8), 0.3, rate=60)
    face.close()
    server.stop(5)
    assert step.sent == step.found.in_time > step.found.codes["OK"] > 5
    assert step.late == 0


def test_answers_that_callers_did_not_wait_for_are_short(module: Any) -> None:
    with answering(1.2 * module.DEADLINE) as (target, face):
        step = counting(module, target, face).step([b"request"], 0.3, rate=40)
    assert step.found.in_time == 0
    assert step.late == step.sent > 0
    # The machine may have been too busy to send in time, of which there is nothing to say.
    told, silent = (dataclasses.replace(step.found, refused=why) for why in ("", "sent late"))
    assert module.lateness("student", [module.Counted(told, step.sent)]).status == "short"
    assert module.lateness("student", [module.Counted(told, 0), module.Counted(silent, step.sent)]).status == "ok"
    assert module.lateness("student", [module.Counted(silent, 0)]).status == "short"

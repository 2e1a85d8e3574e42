"""What a real server shows of itself, read as Prometheus reads it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gr2.client import Client
from gr2.errors import Gr2Error, RequestError
from gr2.serving.observation import http_face
from gr2.serving.observing import http_face as http_face_module
from gr2.serving.observing.exposition import Family, Sample, parse, render
from gr2.serving.observing.histogram import BUCKETS, Histogram, Recorder, bucket, upper
from gr2.serving.observing.http_face import HttpFace
from gr2.serving.server import Server

MakeBundle = Callable[..., Path]
Dribble = Callable[[str, int], list[socket.socket]]
KNOWN = [1000 + 7 * item for item in range(300)]


@pytest.fixture
def server(make_bundle: MakeBundle) -> Iterator[Server]:
    server = Server(make_bundle(), port=0, threads=2, queue=5, metrics_port=0)
    server.start()
    yield server
    server.stop(5)


def values(server: Server) -> dict[str, float]:
    return {f"{each.name}{json.dumps(dict(each.labels))}": each.value for each in parse(server.metrics.text())}


def test_calls_are_counted_by_status_and_timed(server: Server) -> None:
    assert values(server)['gr2_requests_total{"status": "OK"}'] == 0
    with Client(server.address) as client:
        inside = [client.rerank(KNOWN[:3], KNOWN[3:20], timeout=10).timings for _ in range(5)]
        with pytest.raises(RequestError):
            client.rerank([], [])
    server.stop(5)
    found = values(server)
    assert found['gr2_requests_total{"status": "OK"}'] == 5
    assert found['gr2_requests_total{"status": "INVALID_ARGUMENT"}'] == 1
    assert found["gr2_request_duration_seconds_count{}"] == 5
    assert found['gr2_phase_duration_seconds_count{"phase": "queue"}'] == 5
    assert found['gr2_outcomes_total{"outcome": "answered"}'] == 5
    assert found['gr2_outcomes_total{"outcome": "invalid"}'] == 1
    assert found['gr2_requests_waiting{"priority": "high"}'] == 0
    model = found['gr2_phase_duration_seconds_sum{"phase": "model"}']
    assert model == pytest.approx(sum(each.model_ns for each in inside) / 1e9)
    assert model < found["gr2_request_duration_seconds_sum{}"] < 5
    assert found["gr2_requests_capacity{}"] == 7
    assert found["gr2_requests_pending{}"] == 0
    assert found["process_resident_memory_bytes{}"] > 1e7


def test_a_call_that_is_cancelled_is_counted(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call = channel.stream_unary("/gr2.v1.Reranker/Rerank")
        silent = threading.Event()

        def nothing() -> Iterator[bytes]:
            silent.wait(10)
            yield from ()

        future = call.future(nothing())
        while not server._admission.unread:
            time.sleep(0.005)
        future.cancel()
        silent.set()
    server.stop(5)
    found = values(server)
    assert sum(value for name, value in found.items() if name.startswith("gr2_requests_total")) == 1
    assert found["gr2_request_duration_seconds_count{}"] == 0


def test_the_bundle_and_its_state_are_shown(server: Server) -> None:
    info = next(each for each in parse(server.metrics.text()) if each.name == "gr2_bundle_info")
    assert info.labels["version"] == server.engine.version
    assert info.labels["device"] == "cpu"
    assert values(server)["gr2_serving{}"] == 1
    server.stop(5)
    assert values(server)["gr2_serving{}"] == 0


def test_prometheus_own_parser_reads_the_same(server: Server) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    text = server.metrics.text()
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    theirs = [sample for family in families.values() for sample in family.samples]
    ours = parse(text)
    assert sorted((s.name, sorted(s.labels.items())) for s in theirs) == sorted(
        (s.name, sorted(s.labels.items())) for s in ours
    )
    assert families["gr2_request_duration_seconds"].type == "histogram"
    assert families["gr2_requests"].type == "counter"
    assert all(family.documentation for family in families.values())


@given(st.integers(0, 2**62))
def test_a_duration_is_below_the_upper_edge_of_its_bucket_and_not_below_the_one_before(ns: int) -> None:
    index = bucket(ns)
    if index < BUCKETS - 1:
        assert ns < upper(index)
    edges = [upper(each) for each in range(2, BUCKETS)]
    assert edges == sorted(edges)
    if ns >= 4:
        assert ns >= upper(index - 1)


@given(st.lists(st.integers(0, 10**11), max_size=50))
@example([2**31, 2**31 - 1, 2**36])
def test_histograms_are_cumulative_and_complete(durations: list[int]) -> None:
    recorder = Recorder()
    for each in durations:
        recorder.add(each)
    family = Family("x_seconds", "histogram", "About x.").histogram(recorder.read(), phase="a")
    buckets = [s for s in family.samples if s.name == "x_seconds_bucket"]
    for sample in buckets:
        edge = 1e9 * float(sample.labels["le"]) - 0.5  # between two numbers of nanoseconds
        assert sample.value == sum(each < edge for each in durations)
    assert family.samples[-1] == Sample("x_seconds_count", {"phase": "a"}, len(durations))
    assert family.samples[-2].value == pytest.approx(sum(durations) / 1e9)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,5}", fullmatch=True), st.text()), st.floats(allow_nan=False))
def test_labels_and_values_come_back(labels: dict[str, str], value: float) -> None:
    labels = {key: re.sub(r"[\x0b-\x1f\x85\u2028\u2029\r]", "", text) for key, text in labels.items()}
    (sample,) = parse(render([Family("x", "gauge", "About x.", [Sample("x", labels, value)])]))
    assert sample == Sample("x", labels, value)


def test_a_page_that_is_no_metrics_is_refused() -> None:
    with pytest.raises(Gr2Error, match="not a Prometheus metric: '<html>'"):
        parse("<html>")
    with pytest.raises(Gr2Error):
        parse("x one")


def test_histogram_total() -> None:
    assert Histogram([1, 2, 3], 10).total == 6


@pytest.fixture
def face(server: Server) -> Iterator[str]:
    face = http_face(server)
    assert face is not None
    face.start()
    yield face.address
    face.close()


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_http_shows_metrics_and_health(server: Server, face: str) -> None:
    status, text = get(face, "/metrics")
    assert status == 200
    assert "gr2_requests_total" in text
    assert get(face, "/healthz") == (200, "SERVING\n")
    assert get(face, "/")[0] == 404
    server.stop(5)
    assert get(face, "/healthz") == (503, "NOT_SERVING\n")


@pytest.mark.parametrize("count", [4, 32, 96])
def test_clients_that_dribble_do_not_delay_the_others(face: str, dribble: Dribble, count: int) -> None:
    dribble(face, count)
    for _ in range(3):
        begin = time.monotonic()
        assert get(face, "/healthz")[0] == 200
        assert time.monotonic() - begin < 2


def test_silent_clients_do_not_take_the_threads(face: str) -> None:
    host, port = face.split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(64)]
    begin = time.monotonic()
    assert get(face, "/healthz")[0] == 200
    assert time.monotonic() - begin < 2
    for each in silent:
        each.close()


def test_a_request_has_a_limit_however_often_a_byte_comes(
    server: Server, dribble: Dribble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_face_module, "LIMIT", 0.5)
    face = http_face(server)
    assert face is not None
    face.start()
    (client,) = dribble(face.address, 1)
    begin = time.monotonic()
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(1) == b""
    assert 0.4 < time.monotonic() - begin < 3
    face.close()


def test_clients_that_dribble_do_not_hold_up_the_close(server: Server, dribble: Dribble) -> None:
    face = http_face(server)
    assert face is not None
    face.start()
    dribble(face.address, 4)
    assert get(face.address, "/healthz")[0] == 200
    closing = threading.Thread(target=face.close, daemon=True)
    closing.start()
    closing.join(3)
    assert not closing.is_alive()


def test_an_answer_that_is_being_made_is_sent_before_the_close_returns() -> None:
    asked, go_on = threading.Event(), threading.Event()

    def metrics() -> str:
        asked.set()
        assert go_on.wait(10)
        return "a 1\n"

    face = HttpFace("127.0.0.1", 0, metrics=metrics, healthy=lambda: True)
    face.start()
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(get, face.address, "/metrics")
        assert asked.wait(10)
        closed = pool.submit(face.close)
        go_on.set()
        assert answer.result(10) == (200, "a 1\n")
        closed.result(10)


def test_the_host_may_be_an_address_of_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    for host in ("::1", "[::1]"):
        face = HttpFace(host, 0, metrics=lambda: "a 1\n", healthy=lambda: True)
        face.start()
        with urllib.request.urlopen(f"http://{face.address}/metrics", timeout=10) as reply:
            assert reply.read() == b"a 1\n"
        face.close()


def test_a_port_in_use_is_named(server: Server, face: str) -> None:
    port = int(face.rpartition(":")[2])
    server.config = dataclasses.replace(server.config, metrics_port=port)
    with pytest.raises(Gr2Error, match="cannot listen on 127\\.0\\.0\\.1:"):
        http_face(server)


def test_process_metrics_are_of_this_process(server: Server) -> None:
    spent = sum(os.times()[:2])
    assert values(server)["process_cpu_seconds_total{}"] == pytest.approx(spent, abs=1)

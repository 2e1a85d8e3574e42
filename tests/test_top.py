"""`gr2 top` beside a real server that is asked, stopped, and started anew."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from gr2.cli.app import app
from gr2.client import Client
from gr2.errors import ConfigError, Gr2Error
from gr2.serving.models.outcomes import Outcome
from gr2.serving.observation import http_face
from gr2.serving.observing.http_face import HttpFace
from gr2.serving.server import Server
from gr2.top import Screen, quantile, read_metrics, watch

KNOWN = [1000 + 7 * item for item in range(300)]
MakeBundle = Callable[..., Path]


@pytest.fixture
def server(make_bundle: MakeBundle) -> Iterator[Server]:
    server = Server(make_bundle(), port=0, metrics_port=0)
    server.start()
    yield server
    server.stop(5)


@pytest.fixture
def face(server: Server) -> Iterator[HttpFace]:
    face = http_face(server)
    assert face is not None
    face.start()
    yield face
    face.close()


def drawn(screen: object) -> str:
    console = Console(width=140, file=io.StringIO())
    console.print(screen)
    return console.file.getvalue()


def ask(server: Server, times: int) -> None:
    with Client(server.address) as client:
        for _ in range(times):
            client.rerank(KNOWN[:3], KNOWN[3:20], timeout=10)


def test_it_shows_what_happened_between_two_looks(server: Server, face: HttpFace) -> None:
    url = f"http://{face.address}/metrics"
    screen, first = Screen(url), read_metrics(url)
    ask(server, 20)
    second = read_metrics(url)
    text = drawn(screen.show(first, second))
    rate = float(re.search(r"^ *(\d+\.\d) +none", text, re.MULTILINE)[1])
    assert rate == pytest.approx(20 / (second.at - first.at), rel=0.1)
    assert server.engine.version in text
    assert "SERVING" in text
    third = read_metrics(url)
    assert re.search(r"^ *0\.0 +none +- +- +- +0/", drawn(screen.show(second, third)), re.MULTILINE)


def test_it_says_why_requests_were_not_ranked(server: Server, face: HttpFace) -> None:
    url = f"http://{face.address}/metrics"
    first = read_metrics(url)
    core = server._admission.core
    for outcome, times in ((Outcome.FULL, 3), (Outcome.LATE, 2), (Outcome.CANCELLED, 1)):
        for _ in range(times):
            core.count(outcome)
    second = read_metrics(url)
    text = drawn(Screen(url).show(first, second))
    assert "not ranked: 3 queue full, 2 too late for the deadline, 1 cancelled\n" in text
    assert "not ranked: none\n" in drawn(Screen(url).show(second, read_metrics(url)))


def test_a_server_that_goes_away_is_said_and_found_again(
    server: Server, face: HttpFace, make_bundle: MakeBundle
) -> None:
    url, port = f"http://{face.address}/metrics", int(face.address.rpartition(":")[2])
    ask(server, 5)
    screens = watch(url, 0.05)
    assert "gr2" in drawn(next(screens))
    face.close()
    assert "no metrics" in drawn(next(screens))
    fresh = Server(make_bundle(), port=0, metrics_port=port)
    fresh.start()
    again = http_face(fresh)
    assert again is not None
    again.start()
    ask(fresh, 2)
    text = drawn(next(screens))
    assert not re.search(r"-\d", text)
    assert re.search(r"\d+\.\d +none +\d", text)
    again.close()
    fresh.stop(5)


def test_quantiles_are_interpolated() -> None:
    buckets = {0.001: 10.0, 0.002: 90.0, 0.004: 100.0, math.inf: 100.0}
    assert quantile(buckets, 0.5) == pytest.approx(0.0015)
    assert quantile(buckets, 0.95) == pytest.approx(0.003)
    assert math.isnan(quantile({math.inf: 0.0}, 0.5))
    assert quantile({0.001: 0.0, math.inf: 5.0}, 0.5) == 0.001


def test_the_command_prints_as_often_as_asked(server: Server, face: HttpFace) -> None:
    command = ["top", f"http://{face.address}/metrics", "--interval", "0.1", "--rounds", "2"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert result.output.count("requests/s") == 2


def test_no_server_or_no_url_is_an_error_that_says_so() -> None:
    with pytest.raises(Gr2Error, match="started with --metrics-port"):
        read_metrics("http://127.0.0.1:1/metrics")
    with pytest.raises(ConfigError, match="got 127"):
        read_metrics("127.0.0.1:9090")


def test_what_is_no_gr2_server_is_an_error_that_says_where(server: Server, face: HttpFace) -> None:
    with pytest.raises(Gr2Error, match=rf"http://{server.address}/metrics: no metrics \(no HTTP\)"):
        read_metrics(f"http://{server.address}/metrics")
    with pytest.raises(Gr2Error, match=rf"http://{face.address}/healthz: no metrics .*'SERVING'"):
        read_metrics(f"http://{face.address}/healthz")
    other = HttpFace("127.0.0.1", 0, metrics=lambda: "go_threads 7\n", healthy=lambda: True)
    other.start()
    with pytest.raises(Gr2Error, match="metrics, but none of gr2"):
        read_metrics(f"http://{other.address}/metrics")
    other.close()


def test_brackets_of_an_address_are_shown(face: HttpFace) -> None:
    reading = read_metrics(f"http://{face.address}/metrics")
    url = "http://[fe80::1]:9090/metrics"
    assert url in drawn(Screen(url).show(reading, reading))

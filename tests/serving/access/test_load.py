"""What a server says of its load, and that gRPC's balancer heeds it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from gr2.client import Client
from gr2.serving.access import load as load_module
from gr2.serving.access.load import TRAILER, LoadReport, encode_report
from gr2.serving.server import Server
from gr2.serving.services.servicer import Servicer

MakeBundle = Callable[..., Path]
KNOWN = [1000 + 7 * item for item in range(300)]


def decode(report: bytes) -> dict[str, float]:
    """The report as the official parser reads it."""
    numbers = {"cpu_utilization": 1, "mem_utilization": 2, "rps_fractional": 6, "eps": 7, "application_utilization": 9}
    file = descriptor_pb2.FileDescriptorProto(name="orca.proto", package="xds.data.orca.v3", syntax="proto3")
    message = file.message_type.add(name="OrcaLoadReport")
    for name, number in numbers.items():
        message.field.add(name=name, number=number, type=1, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("xds.data.orca.v3.OrcaLoadReport"))
    return {field.name: value for field, value in kind.FromString(report).ListFields()}


def test_report_is_the_official_message() -> None:
    values = {"cpu_utilization": 0.25, "rps_fractional": 812.5, "eps": 1e-3, "application_utilization": 1.75}
    assert decode(encode_report(**values)) == values


def test_window_is_reported_as_rates_and_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(load_module.time, "monotonic", lambda: now)
    load = LoadReport(2)
    assert load.add(100_000_000, failed=False) == ()
    assert load.add(100_000_000, failed=True) == ()
    now = 100.5
    ((key, report),) = load.add(300_000_000, failed=False)
    values = decode(report)
    assert key == TRAILER
    assert values["application_utilization"] == pytest.approx(0.5)
    assert (values["rps_fractional"], values["eps"]) == (4.0, 2.0)
    assert values["cpu_utilization"] >= 0
    assert load.add(1, failed=False) == ((TRAILER, report),)


def test_weighted_round_robin_asks_the_less_loaded_server_more(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = [Server(make_bundle(), port=0, native=False) for _ in range(2)]
    slow, answer = servers[0]._servicer, Servicer.answer

    def slowed(servicer: Servicer, *arguments: object) -> bytes:
        if servicer is slow:
            time.sleep(0.005)
        return answer(servicer, *arguments)

    monkeypatch.setattr(Servicer, "answer", slowed)
    for server in servers:
        server.start()
    target = "ipv4:" + ",".join(server.address for server in servers)
    with Client(target, balancing="weighted_round_robin") as client:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            before = [server._admission.taken for server in servers]
            for _ in range(60):
                client.rerank([], KNOWN[:3], timeout=10)
            asked = [server._admission.taken - count for server, count in zip(servers, before, strict=True)]
            if 0 < 3 * asked[0] <= asked[1]:
                break
        assert 0 < 3 * asked[0] <= asked[1]
    for server in servers:
        server.stop(5)

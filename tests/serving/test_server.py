"""A real server on a free port, called over the wire; and a real process, stopped by a signal."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gr2.client import Client
from gr2.errors import BundleError, ConfigError, Gr2Error, OverloadError
from gr2.serving.access import direct
from gr2.serving.engine import Answer, Engine
from gr2.serving.request import Slate
from gr2.serving.server import Server
from gr2.serving.services.replies import InCore
from gr2.v1 import reranker_pb2, reranker_pb2_grpc

MakeBundle = Callable[..., Path]
KNOWN = [1000 + 7 * item for item in range(300)]
SERVE = "import sys; from gr2.serving.server import serve; serve(sys.argv[1], port=0, threads=2, queue=200)"


class Process:
    """A server in a process of its own."""

    def __init__(self, bundle: Path, code: str = SERVE) -> None:
        command = [sys.executable, "-c", code, str(bundle)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.ready: dict[str, Any] = json.loads(line)
        self.address: str = self.ready["address"]

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        self.process.send_signal(number)
        output, errors = self.process.communicate(timeout=30)
        return self.process.returncode, output, errors


@pytest.fixture(scope="module", params=["direct", "handlers"])
def start(request: pytest.FixtureRequest) -> Iterator[Callable[..., Server]]:
    """Starts servers whose calls come as they do with this version of grpc, or as where it does not hand them over."""
    servers: list[Server] = []

    def start(bundle: Path, **changes: Any) -> Server:
        with pytest.MonkeyPatch.context() as grpc_is:
            grpc_is.setattr(direct, "PRIVATE", request.param == "direct")
            servers.append(Server(bundle, port=0, **changes))
        assert (servers[-1]._direct is not None) == (request.param == "direct")
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop(5)


@pytest.fixture(scope="module")
def server(make_bundle: MakeBundle, start: Callable[..., Server]) -> Server:
    return start(make_bundle())


@pytest.fixture
def process(make_bundle: MakeBundle) -> Iterator[Process]:
    process = Process(make_bundle())
    yield process
    if process.process.poll() is None:
        process.process.kill()
    process.process.communicate()


def test_generated_stub_gets_the_engines_answer(server: Server, channel: grpc.Channel) -> None:
    request = reranker_pb2.RerankRequest(
        history=reranker_pb2.ItemIds(ints=KNOWN[:5]), candidates=reranker_pb2.ItemIds(ints=KNOWN[5:30]), request_id="a"
    )
    response = reranker_pb2_grpc.RerankerStub(channel).Rerank(request, timeout=10)
    expected = server.engine.rerank(KNOWN[:5], KNOWN[5:30])
    assert [(item.index, item.score) for item in response.ranking] == [
        (item.index, item.score) for item in expected.items
    ]
    assert (response.bundle_version, response.request_id) == (server.engine.version, "a")


@pytest.mark.parametrize("service", ["", "gr2.v1.Reranker"])
def test_health_says_serving(channel: grpc.Channel, service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=service)
    status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status
    assert status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_another_service_is_not_found(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="x"), timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_and_describes_the_service(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="gr2.v1.Reranker"),
    ]
    listing, description = stub.ServerReflectionInfo(iter(requests), timeout=10)
    names = {service.name for service in listing.list_services_response.service}
    assert {"gr2.v1.Reranker", "gr2.v1.Management", "grpc.health.v1.Health"} <= names
    assert description.file_descriptor_response.file_descriptor_proto == [reranker_pb2.DESCRIPTOR.serialized_pb]


def test_malformed_requests_get_an_error_and_the_server_lives(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/gr2.v1.Reranker/Rerank")
    rng = random.Random(0)
    good = reranker_pb2.RerankRequest(
        candidates=reranker_pb2.ItemIds(ints=KNOWN[:20]), scores=[1.0] * 20
    ).SerializeToString()
    malformed = [rng.randbytes(rng.randrange(200)) for _ in range(250)]
    malformed += [good[: rng.randrange(len(good))] + b"\xff" * rng.randrange(1, 9) for _ in range(250)]
    codes = set()
    for data in malformed:
        with pytest.raises(grpc.RpcError) as caught:
            call(data, timeout=10)
        codes.add(caught.value.code())
        assert "Traceback" not in caught.value.details()
    assert codes == {grpc.StatusCode.INVALID_ARGUMENT}
    assert reranker_pb2.RerankResponse.FromString(call(good, timeout=10)).ranking


def test_request_beyond_the_message_limit_is_refused(server: Server, channel: grpc.Channel) -> None:
    call = channel.unary_unary("/gr2.v1.Reranker/Rerank")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\x00" * (server.engine.bundle.manifest.limits.max_request_bytes + 1), timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_unexpected_failure_is_internal_without_details(
    make_bundle: MakeBundle, start: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    server = start(make_bundle(), native=False)
    del server.engine.rules
    with Client(server.address) as client, pytest.raises(Gr2Error, match="INTERNAL: internal error") as caught:
        client.rerank([], KNOWN[:3], timeout=10)
    assert "rules" not in str(caught.value)
    assert "AttributeError" in caplog.text


def test_failure_of_the_model_is_internal_and_logged(
    make_bundle: MakeBundle,
    start: Callable[..., Server],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> bytes:
        raise Gr2Error("the model's output cannot be ranked")

    monkeypatch.setattr(InCore, "reply", fail)
    server = start(make_bundle())
    with Client(server.address) as client, pytest.raises(Gr2Error, match="INTERNAL: internal error") as caught:
        client.rerank([], KNOWN[:3], timeout=10)
    assert "ranked" not in str(caught.value)
    assert "cannot be ranked" in caplog.text


def test_compressed_request_is_refused(server: Server) -> None:
    request = reranker_pb2.RerankRequest(candidates=reranker_pb2.ItemIds(ints=[7] * 100_000))
    with grpc.insecure_channel(server.address, compression=grpc.Compression.Gzip) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            reranker_pb2_grpc.RerankerStub(channel).Rerank(request, timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_compressed_request_is_answered_where_it_is_accepted(
    make_bundle: MakeBundle, start: Callable[..., Server]
) -> None:
    server = start(make_bundle(), gzip=True)
    with grpc.insecure_channel(server.address, compression=grpc.Compression.Gzip) as channel:
        stub = reranker_pb2_grpc.RerankerStub(channel)
        request = reranker_pb2.RerankRequest(candidates=reranker_pb2.ItemIds(ints=KNOWN))
        assert len(stub.Rerank(request, timeout=10).ranking) == len(KNOWN)
        request = reranker_pb2.RerankRequest(candidates=reranker_pb2.ItemIds(ints=[7] * 2_000_000))
        with pytest.raises(grpc.RpcError) as caught:
            stub.Rerank(request, timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_serving_without_standard_output(make_bundle: MakeBundle) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    code = SERVE.replace("port=0", f"port={port}")
    script = f"exec {sys.executable} -c '{code}' {make_bundle()} >&-"
    process = subprocess.Popen(["bash", "-c", script], stderr=subprocess.PIPE, text=True)
    try:
        with Client(f"127.0.0.1:{port}") as client:
            client.wait_ready(60)
    finally:
        process.terminate()
        errors = process.communicate(timeout=30)[1]
    assert (process.returncode, errors) == (0, "")


def test_full_disk_under_standard_output_and_error_stops_nothing(make_bundle: MakeBundle) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-c", SERVE.replace("port=0", f"port={port}"), str(make_bundle())]
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(command, stdout=full, stderr=full)
    try:
        with Client(f"127.0.0.1:{port}") as client:
            client.wait_ready(60)
            assert len(client.rerank([], KNOWN[:4], timeout=10).items) == 4
    finally:
        process.terminate()
    assert process.wait(30) == 0


def test_work_beyond_the_queue_is_refused(make_bundle: MakeBundle, start: Callable[..., Server]) -> None:
    server = start(make_bundle(items=3000, level_size=256), threads=1, queue=1)
    slate = [1000 + 7 * item for item in range(1024)]
    with Client(server.address) as client:
        client.wait_ready()

        def call(_: int) -> str:
            try:
                client.rerank([], slate, timeout=60)
            except OverloadError as error:
                return str(error)
            return "answered"

        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(call, range(16)))
    assert set(results) == {"answered", f"{server.address}: overloaded: 2 requests are at work or wait already"}


def test_request_whose_deadline_passed_in_the_queue_costs_no_work(
    make_bundle: MakeBundle, start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    worked: list[int] = []
    free, rank = threading.Event(), Engine.rank

    def slow_rank(engine: Engine, slate: Slate, start: int, wanted: Callable[[], bool]) -> Answer:
        worked.append(len(slate.candidates))
        assert free.wait(30)
        return rank(engine, slate, start, wanted)

    monkeypatch.setattr(Engine, "rank", slow_rank)
    server = start(make_bundle(), threads=1, native=False)
    with Client(server.address) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.rerank, [], KNOWN[:2], timeout=30)
        while not worked:
            time.sleep(0.01)
        with pytest.raises(Gr2Error, match=r"no answer within 0\.1 s"):
            client.rerank([], KNOWN[:3], timeout=0.1)
        free.set()
        assert len(first.result().items) == 2
        assert len(client.rerank([], KNOWN[:4], timeout=30).items) == 4
    assert worked == [2, 4]


def test_port_in_use_is_a_clear_error(server: Server, make_bundle: MakeBundle) -> None:
    with pytest.raises(
        Gr2Error, match=r"cannot listen on 198\.51\.100\.7:0; .* the host not an address of this machine"
    ):
        Server(make_bundle(), host="198.51.100.7", port=0, insecure=True)
    with pytest.raises(Gr2Error, match=rf"cannot listen on 127\.0\.0\.1:{server.port}"):
        Server(make_bundle(), port=server.port)


@pytest.mark.parametrize("sizes", [{"threads": -3}, {"threads": 0}, {"queue": -1}, {"threads": 10**6}])
def test_impossible_number_of_threads_is_a_clear_error(make_bundle: MakeBundle, sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"threads must be in 1\.\.4096 and queue in 0\.\.4096, got"):
        Server(make_bundle(), port=0, **sizes)


def test_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle"):
        Server(tmp_path, port=0)


def test_ready_line_tells_address_bundle_and_device(process: Process, make_bundle: MakeBundle) -> None:
    assert process.ready.keys() == {"event", "address", "bundle", "device"}
    assert (process.ready["event"], process.ready["device"]) == ("ready", "cpu")
    host, port = process.address.split(":")
    with socket.create_connection((host, int(port)), timeout=10):
        pass
    version = json.loads((make_bundle() / "manifest.json").read_text())["version"]
    assert process.ready["bundle"] == version


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_an_idle_server_with_code_0(process: Process, number: int) -> None:
    assert process.stop(number) == (0, "", "")


def test_sigterm_answers_every_request_in_flight(process: Process) -> None:
    request = reranker_pb2.RerankRequest(candidates=reranker_pb2.ItemIds(ints=KNOWN))
    with grpc.insecure_channel(process.address) as channel:
        calls = [reranker_pb2_grpc.RerankerStub(channel).Rerank.future(request, timeout=20) for _ in range(60)]
        calls[0].result()
        assert process.stop() == (0, "", "")
        assert all(len(call.result().ranking) == len(KNOWN) for call in calls)


def test_sigterm_under_steady_load_answers_or_refuses_every_request(process: Process) -> None:
    results: list[str] = []
    answered = threading.Event()

    def work(client: Client) -> None:
        while True:
            try:
                ranking = client.rerank(KNOWN[:20], KNOWN, timeout=20)
            except Gr2Error as error:
                results.append(str(error))
                return
            results.append("answered" if len(ranking.items) == len(KNOWN) else "short")
            answered.set()

    clients = [Client(process.address) for _ in range(8)]
    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    assert answered.wait(20)
    assert process.stop() == (0, "", "")
    for thread, client in zip(threads, clients, strict=True):
        thread.join(20)
        client.close()
    refusal = f"{process.address}: cannot be reached: the server is stopping"
    assert set(results) == {"answered", refusal}
    assert results.count(refusal) == 8


def test_open_health_watch_sees_not_serving_and_does_not_delay_the_stop(process: Process) -> None:
    with grpc.insecure_channel(process.address) as channel:
        request = health_pb2.HealthCheckRequest(service="gr2.v1.Reranker")
        watch = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=30)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        start = time.monotonic()
        os.kill(process.process.pid, signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert process.process.wait(20) == 0
        assert time.monotonic() - start < 5


def test_threads_take_whole_turns_and_the_callers_only_meanwhile(make_bundle: MakeBundle) -> None:
    load, serve = SERVE.rsplit("; ", 1)
    earlier = "import os; print(*os.listdir('/proc/self/task'), file=sys.stderr)"
    process = Process(make_bundle(), f"{load}; {earlier}; {serve}; print(os.sched_getscheduler(0))")
    try:
        with Client(process.address) as client:
            assert len(client.rerank([], KNOWN[:3], timeout=10).items) == 3
        threads = [int(each.name) for each in Path(f"/proc/{process.process.pid}/task").iterdir()]
        policies = {thread: os.sched_getscheduler(thread) for thread in threads}
        code, output, errors = process.stop()
    finally:
        process.process.kill()
    others = policies.keys() - set(map(int, errors.split()))
    assert len(others) > 3
    assert {policies[thread] for thread in (process.process.pid, *others)} == {os.SCHED_BATCH}
    assert (code, output) == (0, f"{os.SCHED_OTHER}\n")

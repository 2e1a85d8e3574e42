"""What a server says of itself, over the wire."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from gr2.bundle import Bundle
from gr2.cli.app import app
from gr2.client import Client
from gr2.errors import RequestError
from gr2.serving.access.tokens import make_token
from gr2.serving.server import Server
from gr2.v1 import management_pb2, management_pb2_grpc

MakeBundle = Callable[..., Path]
KNOWN = [1000 + 7 * item for item in range(300)]


@pytest.fixture
def root(make_bundle: MakeBundle, tmp_path: Path) -> Path:
    shutil.copytree(make_bundle(), tmp_path / "shop" / "1")
    shutil.copytree(make_bundle("string", width=2), tmp_path / "games" / "2026-11-26")
    return tmp_path


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    server = Server(root, port=0, default="shop", threads=3, queue=5, poll=0.0)
    server.start()
    yield server
    server.stop(5)


@pytest.fixture
def stub(server: Server) -> Iterator[management_pb2_grpc.ManagementStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield management_pb2_grpc.ManagementStub(channel)


def test_info_tells_bundles_limits_and_how_the_server_runs(
    stub: management_pb2_grpc.ManagementStub, root: Path
) -> None:
    info = stub.GetServerInfo(management_pb2.ServerInfoRequest(), timeout=10)
    assert (info.threads, info.queue, info.tls, info.tokens, info.stopping) == (3, 5, False, False, False)
    assert (info.max_message_bytes, info.uptime_seconds > 0) == (1 << 20, True)
    games, shop = info.bundles
    assert (shop.name, shop.label, shop.is_default, shop.serving) == ("shop", "1", True, True)
    assert (games.name, games.label, games.is_default, games.serving) == ("games", "2026-11-26", False, True)
    bundle = Bundle.load(root / "games" / "2026-11-26")
    assert games.version == bundle.version
    assert games.codebook_fingerprint == bundle.manifest.codebook.fingerprint
    assert (games.graph, games.model_sha256) == ("model.onnx", bundle.manifest.files["model.onnx"]["sha256"])
    assert (games.device, games.items, games.id_type, games.limits.feature_width) == ("cpu", 300, "string", 2)
    assert (shop.limits.max_candidates, shop.limits.max_history) == (1024, 1024)


def test_reload_serves_a_new_version_and_tells_why_a_broken_one_is_refused(
    stub: management_pb2_grpc.ManagementStub, root: Path, make_bundle: MakeBundle
) -> None:
    shutil.copytree(make_bundle(scale=2.0), root / "shop" / "2")
    shutil.copytree(make_bundle(), root / "shop" / "3")
    (root / "shop" / "3" / "model.onnx").write_bytes(b"corrupt")
    shop = stub.Reload(management_pb2.ReloadRequest(), timeout=30).bundles[1]
    assert (shop.label, shop.swaps, shop.refusals, shop.serving) == ("2", 1, 1, True)
    assert shop.reason.endswith("copy or export the bundle again")


def test_command_prints_what_the_server_says(server: Server, root: Path, make_bundle: MakeBundle) -> None:
    shutil.copytree(make_bundle(scale=2.0), root / "shop" / "2")
    labels = []
    for arguments in ([], ["--reload"]):
        result = CliRunner().invoke(app, ["info", server.address, *arguments])
        assert result.exit_code == 0
        labels.append(json.loads(result.stdout)["bundles"][1]["label"])
    assert labels == ["1", "2"]


def test_info_needs_the_token_too(make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token, line = make_token("operator")
    (tmp_path / "tokens").write_text(line)
    server = Server(make_bundle(), port=0, tokens=str(tmp_path / "tokens"))
    server.start()
    assert "UNAUTHENTICATED" in str(CliRunner().invoke(app, ["info", server.address]).exception)
    monkeypatch.setenv("GR2_TOKEN", token)
    result = CliRunner().invoke(app, ["info", server.address])
    assert json.loads(result.stdout)["tokens"] is True
    (tmp_path / "request.json").write_text(json.dumps({"candidates": KNOWN[:3]}))
    result = CliRunner().invoke(app, ["rerank", str(tmp_path / "request.json"), "--address", server.address, "--json"])
    assert len(json.loads(result.stdout)["ranking"]) == 3
    server.stop(5)


def test_requests_and_health_know_bundles_by_name(server: Server, root: Path) -> None:
    (root / "toys" / "1").mkdir(parents=True)
    server.repository.refresh()
    with Client(server.address) as client, grpc.insecure_channel(server.address) as channel:
        assert len(client.rerank([], KNOWN[:3], timeout=10).items) == 3
        assert len(client.rerank([], ["a", "b"], bundle="games", timeout=10).items) == 2
        with pytest.raises(RequestError, match="no bundle 'books' here; there are games, shop, toys"):
            client.rerank([], KNOWN[:3], bundle="books", timeout=10)
        health = health_pb2_grpc.HealthStub(channel)
        statuses = {
            name: health.Check(health_pb2.HealthCheckRequest(service=f"gr2.v1.Reranker/{name}"), timeout=10).status
            for name in ("shop", "games", "toys")
        }
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert statuses == {"shop": serving, "games": serving, "toys": not_serving}

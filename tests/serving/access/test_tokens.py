"""Callers with and without a token; the file that says whose they are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from typer.testing import CliRunner

from gr2.cli.app import app
from gr2.client import Client
from gr2.errors import ConfigError, Gr2Error
from gr2.serving.access import tokens as tokens_module
from gr2.serving.access.tokens import TokenFile, make_token
from gr2.serving.server import Server

MakeBundle = Callable[..., Path]
KNOWN = [1000 + 7 * item for item in range(300)]


def token_file(path: Path, *names: str) -> list[str]:
    made = [make_token(name) for name in names]
    path.write_text("# our rankers\n\n" + "".join(f"{line}  # a comment\n" for _, line in made))
    return [token for token, _ in made]


def test_token_is_known_by_its_hash_only(tmp_path: Path) -> None:
    tokens = token_file(tmp_path / "tokens", "a", "b")
    assert not any(token in (tmp_path / "tokens").read_text() for token in tokens)
    file = TokenFile(str(tmp_path / "tokens"))
    assert [file.client(token) for token in tokens] == ["a", "b"]
    digest = hashlib.sha256(tokens[0].encode()).hexdigest()
    for other in ("", digest, tokens[0] + "x", tokens[0][:-1], "\ud800"):
        assert file.client(other) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "1 to 256 clients are expected, got 0"),
        ("a gr2_secret", "line 1: expected NAME and the token's SHA-256"),
        (f"a {'0' * 63}", "line 1: expected NAME"),
        (f"# x\n{'a' * 65} {'0' * 64}", "line 2: expected NAME"),
        ("#" * (1 << 16) + "#", "larger than 65536 bytes"),
    ],
)
def test_file_that_cannot_be_used_is_refused_without_quoting_it(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "tokens").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        TokenFile(str(tmp_path / "tokens"))
    assert "secret" not in str(caught.value)


def test_changed_file_is_read_again_and_a_broken_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tokens_module, "LOOK_SECONDS", 0.0)
    path = tmp_path / "tokens"
    (old,) = token_file(path, "a")
    file = TokenFile(str(path))
    (new,) = token_file(path, "a")
    os.utime(path, ns=(1, 1))
    assert (file.client(old), file.client(new)) == (None, "a")
    path.write_text("garbage")
    assert file.client(new) == "a"
    path.unlink()
    assert file.client(new) == "a"
    assert caplog.text.count("the new file is not used") == 2


def test_calls_without_a_known_token_are_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    (token,) = token_file(tmp_path / "tokens", "ranker")
    server = Server(make_bundle(), port=0, tokens=str(tmp_path / "tokens"))
    server.start()
    with Client(server.address, token=token) as client:
        client.wait_ready()
        assert len(client.rerank([], KNOWN[:4], timeout=10).items) == 4
    for other in ("", "gr2_other"):
        with Client(server.address, token=other) as client:
            client.wait_ready()
            with pytest.raises(Gr2Error, match="UNAUTHENTICATED: a token of this server is needed"):
                client.rerank([], KNOWN[:4], timeout=10)
    with grpc.insecure_channel(server.address) as channel:
        requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        with pytest.raises(grpc.RpcError) as caught:
            next(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(requests, timeout=10))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    text = server.metrics.text()
    assert 'gr2_client_calls_total{client="ranker"} 1' in text
    assert "gr2_unauthenticated_calls_total 3" in text
    server.stop(5)


def test_command_prints_the_token_and_keeps_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    tokens = []
    for name in ("a", "b"):
        result = CliRunner().invoke(app, ["token", name, "--file", str(path)])
        assert result.exit_code == 0
        tokens.append(result.stdout.strip())
    file = TokenFile(str(path))
    assert [file.client(token) for token in tokens] == ["a", "b"]
    with pytest.raises(ConfigError, match="a client's name is"):
        make_token("two words")

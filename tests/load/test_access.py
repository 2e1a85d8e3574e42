"""Load on servers that ask for TLS and for a token."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gr2.bundle import Bundle
from gr2.errors import Gr2Error
from gr2.load.plan import Plan, check_target, run_plan
from gr2.load.requests import draw_requests
from gr2.load.step import Generator
from gr2.serving.access.tokens import make_token
from gr2.serving.server import Server

MakeBundle = Callable[..., Path]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program to make certificates")
    cert, key = (str(tmp_path_factory.mktemp("tls") / name) for name in ("cert.pem", "key.pem"))
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run([*command, "-keyout", key, "-out", cert, "-days", "2", *names], check=True, capture_output=True)
    return cert, key


def test_a_server_with_tls_that_is_asked_in_clear_text_is_named(
    make_bundle: MakeBundle, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gr2.load.plan.PROBE_TIMEOUT", 0.3)
    cert, key = certificate
    server = Server(Bundle.load(make_bundle()), port=0, cert=cert, key=key)
    server.start()
    with pytest.raises(Gr2Error, match=r"Socket closed; one with TLS needs --ca"):
        check_target(server.address, b"")
    server.stop(5)


def test_requests_go_over_tls_with_a_token(
    make_bundle: MakeBundle, certificate: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, line = make_token("bench")
    (tmp_path / "tokens").write_text(f"{line}\n")
    cert, key = certificate
    bundle = Bundle.load(make_bundle())
    server = Server(bundle, port=0, cert=cert, key=key, tokens=str(tmp_path / "tokens"))
    server.start()
    requests = draw_requests(bundle, 50, history=5, candidates=8)
    generator = Generator(tls=(cert, "", ""))
    monkeypatch.delenv("GR2_TOKEN", raising=False)
    with pytest.raises(Gr2Error, match="the first request failed: UNAUTHENTICATED"):
        check_target(server.address, requests[0], generator.tls)
    monkeypatch.setenv("GR2_TOKEN", token)
    (summary,) = run_plan(server.address, requests, Plan(concurrency=[2], seconds=0.3, warmup=0.1), generator=generator)
    server.stop(5)
    assert summary.codes == {"OK": summary.calls}
    assert summary.calls > 10

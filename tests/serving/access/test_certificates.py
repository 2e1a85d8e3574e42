"""TLS with real certificates: who may connect, and what happens when the files change."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gr2.client import Client
from gr2.errors import ConfigError, OverloadError
from gr2.serving.access.certificates import Certificates
from gr2.serving.server import Server

MakeBundle = Callable[..., Path]
KNOWN = [1000 + 7 * item for item in range(300)]


class Authority:
    """Makes certificates for localhost in a folder. Skips the test where there is no openssl."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("needs the openssl program to make certificates")
        folder.mkdir(parents=True)
        self.folder, self.cert, self.key = folder, str(folder / "ca.pem"), str(folder / "ca.key")
        self._run("req", "-x509", *self._new("ca"), "-subj", f"/CN={folder.name}", "-days", "2", "-out", self.cert)

    def issue(self, name: str) -> tuple[str, str]:
        """The paths of a new certificate and its key."""
        request, cert, key = (str(self.folder / f"{name}.{kind}") for kind in ("csr", "pem", "key"))
        extension = self.folder / "names"
        extension.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
        self._run("req", *self._new(name), "-subj", f"/CN={name}", "-out", request)
        signing = ["-CA", self.cert, "-CAkey", self.key, "-CAcreateserial", "-extfile", str(extension)]
        self._run("x509", "-req", "-in", request, *signing, "-days", "2", "-out", cert)
        return cert, key

    def _new(self, name: str) -> list[str]:
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        return [*key, "-nodes", "-keyout", str(self.folder / f"{name}.key")]

    @staticmethod
    def _run(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "theirs")


@pytest.fixture
def start(make_bundle: MakeBundle) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(**changes: object) -> Server:
        servers.append(Server(make_bundle(), port=0, **changes))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop(5)


def answers(server: Server, **identity: str) -> bool:
    with Client(server.address, **identity) as client:
        try:
            return len(client.rerank([], KNOWN[:4], timeout=5).items) == 4
        except OverloadError:
            return False


def test_only_callers_that_trust_the_authority_and_speak_tls_are_answered(
    start: Callable[..., Server], authority: Authority, stranger: Authority
) -> None:
    cert, key = authority.issue("server")
    server = start(cert=cert, key=key)
    assert answers(server, ca=authority.cert)
    assert not answers(server, ca=stranger.cert)
    assert not answers(server)


def test_mutual_tls_asks_callers_for_a_certificate_of_the_authority(
    start: Callable[..., Server], authority: Authority, stranger: Authority
) -> None:
    cert, key = authority.issue("server")
    server = start(cert=cert, key=key, client_ca=authority.cert)
    client, other = authority.issue("client"), stranger.issue("client")
    assert answers(server, ca=authority.cert, cert=client[0], key=client[1])
    assert not answers(server, ca=authority.cert, cert=other[0], key=other[1])
    assert not answers(server, ca=authority.cert)


def certificate(server: Server) -> str:
    return ssl.get_server_certificate(("127.0.0.1", server.port))


def test_renewed_certificate_is_shown_to_new_connections(
    start: Callable[..., Server], authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = tmp_path / "server.pem", tmp_path / "server.key"
    issued = [authority.issue(name) for name in ("first", "second")]

    def install(path: Path, source: str) -> None:
        path.with_suffix(".new").write_bytes(Path(source).read_bytes())
        path.with_suffix(".new").replace(path)

    install(cert, issued[0][0])
    install(key, issued[0][1])
    server = start(cert=str(cert), key=str(key))
    assert certificate(server).strip() == Path(issued[0][0]).read_text().strip()
    with Client(server.address, ca=authority.cert) as client:
        client.rerank([], KNOWN[:3], timeout=5)
        install(cert, issued[1][0])
        assert certificate(server).strip() == Path(issued[0][0]).read_text().strip()
        assert "are not a certificate and its key" in caplog.text
        install(key, issued[1][1])
        assert certificate(server).strip() == Path(issued[1][0]).read_text().strip()
        client.rerank([], KNOWN[:3], timeout=5)
    assert answers(server, ca=authority.cert)


def test_files_that_do_not_belong_together_are_refused_at_the_start(authority: Authority, tmp_path: Path) -> None:
    cert, _ = authority.issue("one")
    _, key = authority.issue("two")
    with pytest.raises(ConfigError, match="are not a certificate and its key"):
        Certificates(cert, key)
    with pytest.raises(ConfigError, match=r"missing\.pem"):
        Certificates(str(tmp_path / "missing.pem"), key)
    _, own = authority.issue("one")
    (tmp_path / "empty").write_text("")
    with pytest.raises(ConfigError, match="no certificate authority"):
        Certificates(authority.issue("one")[0], own, str(tmp_path / "empty"))

"""TLS for the server, with certificates that are read again when their files change."""

from __future__ import annotations

import logging
import ssl
import threading
from pathlib import Path

import grpc

from gr2.errors import ConfigError

__all__ = ["Certificates"]

logger = logging.getLogger(__name__)

Stamp = tuple[tuple[int, int, int], ...]


class Certificates:
    """A certificate chain, its key, and the authority that callers' certificates must come from, if they need any.

    Each new connection gets what the files hold by then. Files that do not fit together, as when one of them has been
    replaced and the other not yet, change nothing; the reason is logged once.
    """

    def __init__(self, cert: str, key: str, client_ca: str = "") -> None:
        """Raises ConfigError if the files cannot be used."""
        self._cert, self._key, self._ca = Path(cert), Path(key), Path(client_ca) if client_ca else None
        self._lock = threading.Lock()
        self.reloads = 0
        try:
            self._stamp = self._look()
            self._first = self._read()
        except (OSError, ValueError) as error:
            raise ConfigError(f"TLS: {error}") from error

    def credentials(self) -> grpc.ServerCredentials:
        """What a secure port takes."""
        return grpc.dynamic_ssl_server_credentials(
            self._first, self._latest, require_client_authentication=self._ca is not None
        )

    def _latest(self) -> grpc.ServerCertificateConfiguration | None:
        """The certificates if they have changed; called before every handshake."""
        with self._lock:
            try:
                stamp = self._look()
                if stamp == self._stamp:
                    return None
                self._stamp = stamp
                found = self._read()
            except (OSError, ValueError) as error:
                logger.error("TLS: the new certificates are not used: %s", error)
                return None
            self.reloads += 1
            logger.info("TLS: new certificates from %s", self._cert)
            return found

    def _look(self) -> Stamp:
        stats = [path.stat() for path in self._paths()]
        return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)

    def _paths(self) -> list[Path]:
        return [path for path in (self._cert, self._key, self._ca) if path is not None]

    def _read(self) -> grpc.ServerCertificateConfiguration:
        """Raises ValueError or OSError unless the key is the certificate's, and the authority's file holds one.

        grpc itself would take anything, and fail at every handshake.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._cert, self._key, password="")
        except (ssl.SSLError, ValueError) as error:
            raise ValueError(f"{self._cert} and {self._key} are not a certificate and its key: {error}") from error
        try:
            if self._ca is not None:
                context.load_verify_locations(self._ca)
        except ssl.SSLError as error:
            raise ValueError(f"{self._ca}: no certificate authority: {error}") from error
        pair = self._key.read_bytes(), self._cert.read_bytes()
        return grpc.ssl_server_certificate_configuration([pair], self._ca.read_bytes() if self._ca else None)

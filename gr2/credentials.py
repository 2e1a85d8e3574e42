"""What a caller shows and asks for in TLS."""

from __future__ import annotations

from pathlib import Path

import grpc

from gr2.errors import ConfigError

__all__ = ["channel_credentials"]


def channel_credentials(ca: str, cert: str, key: str) -> grpc.ChannelCredentials | None:
    """Of PEM files: the authority of the server's certificate, the caller's own certificate and its key.

    None if all are empty, for clear text. Raises ConfigError for a certificate that would not be used, and OSError if a
    file cannot be read.
    """
    if bool(cert) != bool(key) or (cert and not ca):
        raise ConfigError("cert and key go together, and with ca, without which calls are in clear text")
    if not ca:
        return None
    pair = (Path(key).read_bytes(), Path(cert).read_bytes()) if cert else (None, None)
    return grpc.ssl_channel_credentials(Path(ca).read_bytes(), *pair)

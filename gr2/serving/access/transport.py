"""The port and its limits: what a connection and a message may be, before any of it is a request."""

from __future__ import annotations

import grpc

from gr2.errors import Gr2Error
from gr2.serving.access.certificates import Certificates
from gr2.serving.config import ServeConfig

__all__ = ["listen", "options"]

# Times are in milliseconds. Connections that are idle, silent or never finish their handshake are closed.
CONNECTIONS = (
    ("grpc.max_allowed_incoming_connections", 4096),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 60_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Callers may ask every 10 seconds whether the server lives, at work or not; more often ends the connection.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)
METADATA = (("grpc.max_metadata_size", 8 << 10), ("grpc.absolute_max_metadata_size", 16 << 10))
# Bits of algorithms: none, deflate, gzip.
PLAIN, GZIP = 1 << 0, 1 << 0 | 1 << 2


def options(config: ServeConfig, largest_request: int) -> list[tuple[str, int]]:
    """The options of a grpc server that takes messages of at most `largest_request` bytes.

    Compression is off unless it is asked for: older versions of grpcio inflate a message, 300 KB to 300 MB, before they
    check its size.
    """
    return [
        ("grpc.max_receive_message_length", largest_request),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
        ("grpc.compression_enabled_algorithms_bitset", GZIP if config.gzip else PLAIN),
        *CONNECTIONS,
        *METADATA,
    ]


def listen(server: grpc.Server, config: ServeConfig) -> str:
    """Take the port, and return its address. Raises ConfigError for certificates, Gr2Error if it cannot be taken."""
    host = f"[{config.host}]" if ":" in config.host and not config.host.startswith("[") else config.host
    address = f"{host}:{config.port}"
    credentials = Certificates(config.cert, config.key, config.client_ca).credentials() if config.cert else None
    try:
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        reason = "does another program use the port, or is the host not an address of this machine?"
        raise Gr2Error(f"cannot listen on {address}; {reason}") from error
    return f"{host}:{port}"

"""How a server is watched, as its configuration says: the log, metrics over HTTP, traces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gr2.serving.observing.http_face import HttpFace
from gr2.serving.observing.logs import configure_logs

if TYPE_CHECKING:
    from gr2.serving.config import ServeConfig
    from gr2.serving.observing.tracing import Tracing
    from gr2.serving.server import Server

__all__ = ["http_face", "start_watching"]


def start_watching(config: ServeConfig) -> Tracing | None:
    """Set up the process's log and, if wanted, tracing. Raises ConfigError and MissingExtraError."""
    configure_logs(config.log_format, config.log_level)
    if not config.traces:
        return None
    from gr2.serving.observing.tracing import Tracing, exporting_provider

    return Tracing(exporting_provider())


def http_face(server: Server) -> HttpFace | None:
    """The HTTP face of a server, not started; None if none is wanted. Raises Gr2Error if its port cannot be had."""
    host, port = server.config.metrics_host, server.config.metrics_port
    if port is None:
        return None
    return HttpFace(host, port, metrics=server.metrics.text, healthy=lambda: server.serving)

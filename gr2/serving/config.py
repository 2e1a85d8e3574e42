"""How a server is run: where it listens, what it takes at once, which bundles it serves, and who may call it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from gr2.errors import ConfigError
from gr2.serving.models.batcher import BatchLimits

__all__ = ["MOST_THREADS", "ServeConfig"]

MOST_THREADS = 4096


@dataclass(frozen=True)
class ServeConfig:
    """Everything that a server can be told. Raises ConfigError for what cannot be.

    `threads` requests are at work at once, by default as many as there are cores; `queue` more may wait. Port 0 takes
    a free port. `grace` is the seconds that accepted requests have when the server stops. `device`, `native`,
    `batch` and `batch_delay` are the engine's; `default` and `poll` the repository's; of what it answers,
    `shadow_share` is compared with the bundle named `shadow`. `cert` and `key` are PEM files for TLS; with
    `client_ca` callers need a certificate too. `tokens` is a file of `gr2.serving.access.tokens`. Without TLS the
    server listens on loopback only, unless `insecure` asks for more. `gzip` accepts compressed requests, which older
    versions of grpcio inflate, a thousandfold, before they look at the size. `/metrics` and `/healthz` are at
    `metrics_host` and `metrics_port`, if it is given; 0 takes a free one. `log_format` is text or json; `traces`
    exports spans as the OTEL_* variables say.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    threads: int | None = None
    queue: int = 16
    grace: float = 10.0
    device: str = "cpu"
    native: bool = True
    batch: int = 64
    batch_delay: float = 500.0
    default: str = ""
    poll: float = 2.0
    shadow: str = ""
    shadow_share: float = 0.1
    cert: str = ""
    key: str = ""
    client_ca: str = ""
    tokens: str = ""
    insecure: bool = False
    gzip: bool = False
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    log_format: str = "text"
    log_level: str = "warning"
    traces: bool = False

    def __post_init__(self) -> None:
        if (self.threads is not None and not 1 <= self.threads <= MOST_THREADS) or not 0 <= self.queue <= MOST_THREADS:
            limits = f"threads must be in 1..{MOST_THREADS} and queue in 0..{MOST_THREADS}"
            raise ConfigError(f"{limits}, got {self.threads} and {self.queue}")
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"port must be in 0..65535, got {self.port}")
        if self.metrics_port is not None and not 0 <= self.metrics_port < 1 << 16:
            raise ConfigError(f"metrics_port must be in 0..65535, got {self.metrics_port}")
        if min(self.grace, self.poll) < 0:
            raise ConfigError(f"grace and poll are seconds, 0 or more, got {self.grace:g} and {self.poll:g}")
        if not 0 < self.shadow_share <= 1:
            raise ConfigError(f"shadow_share must be above 0 and at most 1, got {self.shadow_share:g}")
        if bool(self.cert) != bool(self.key):
            raise ConfigError("cert and key belong together: give both PEM files, or neither")
        if self.client_ca and not self.cert:
            raise ConfigError("client_ca asks callers for certificates, which takes TLS: give cert and key too")
        if not (self.cert or self.insecure or _is_loopback(self.host)):
            raise ConfigError(
                f"host {self.host} is no loopback address, and all traffic would be in clear text: give cert and key, "
                "or say insecure if something else protects it"
            )
        _ = self.batches

    @property
    def batches(self) -> BatchLimits:
        """The limits of a GPU's batches."""
        return BatchLimits(self.batch, self.batch_delay, max(BatchLimits.queue, self.batch))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

"""`gr2.v1.Management`: what the server serves, and a look for new bundles on demand, on threads of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from gr2.bundle import Bundle
from gr2.serving.access.calls import Patience, in_pool
from gr2.serving.access.listener import Listener
from gr2.serving.bundles.repository import BundleStatus, Repository, yield_to_requests
from gr2.serving.config import ServeConfig
from gr2.v1 import management_pb2
from gr2.version import __version__

__all__ = ["MANAGEMENT", "ManagementService"]

MANAGEMENT: str = management_pb2.DESCRIPTOR.services_by_name["Management"].full_name
THREADS = 2
WAIT = 5.0  # seconds


class ManagementService:
    """Tells what `describe` adds to what the repository and the configuration say."""

    def __init__(
        self,
        repository: Repository,
        config: ServeConfig,
        patience: Patience,
        describe: Callable[[management_pb2.ServerInfo], None],
    ) -> None:
        self._repository, self._config, self._describe = repository, config, describe
        self._started = time.monotonic()
        self._pool = Listener(THREADS, "manage", patience, WAIT)

    def handler(self) -> grpc.GenericRpcHandler:
        """What to add to a server."""

        def get(messages: Iterator[Any], context: grpc.ServicerContext) -> management_pb2.ServerInfo:
            self._pool.only_message(messages, context)
            return self.info()

        def reload(messages: Iterator[Any], context: grpc.ServicerContext) -> management_pb2.ServerInfo:
            self._pool.only_message(messages, context)
            yield_to_requests()
            self._repository.refresh()
            return self.info()

        methods = {
            "GetServerInfo": self._method(get, management_pb2.ServerInfoRequest),
            "Reload": self._method(reload, management_pb2.ReloadRequest),
        }
        return grpc.method_handlers_generic_handler(MANAGEMENT, methods)

    def info(self) -> management_pb2.ServerInfo:
        """What the server is and serves, now."""
        config = self._config
        info = management_pb2.ServerInfo(
            gr2_version=__version__,
            uptime_seconds=time.monotonic() - self._started,
            queue=config.queue,
            tls=bool(config.cert),
            tokens=bool(config.tokens),
            bundles=[_bundle(status, self._repository.default) for status in self._repository.status()],
        )
        self._describe(info)
        return info

    def shutdown(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _method(self, behavior: Callable[..., management_pb2.ServerInfo], request: Any) -> grpc.RpcMethodHandler:
        return grpc.stream_unary_rpc_method_handler(
            in_pool(self._pool, behavior),
            request_deserializer=request.FromString,
            response_serializer=management_pb2.ServerInfo.SerializeToString,
        )


def _graphs(bundle: Bundle, device: str) -> Sequence[Path]:
    """The files that rank: one graph, the encoder and the scorer, or the weights."""
    if device != "cpu":
        return [bundle.batch_graph]
    graphs = bundle.manifest.graphs
    if graphs.variants[graphs.default].native:
        return [bundle.weights]
    return bundle.graph_pair() or [bundle.graph]


def _bundle(status: BundleStatus, default: str) -> management_pb2.BundleInfo:
    info = management_pb2.BundleInfo(
        name=status.name,
        is_default=status.name == default,
        swaps=status.swaps,
        refusals=status.refusals,
        reason=status.reason,
        draining=status.draining,
    )
    if status.bundle is None:
        return info
    manifest = status.bundle.manifest
    limits = manifest.limits
    info.serving, info.label, info.version, info.device = True, status.label, status.bundle.version, status.device
    graphs = [path.name for path in _graphs(status.bundle, status.device)]
    info.graph = " ".join(graphs)
    info.model_sha256 = " ".join(manifest.files[name]["sha256"] for name in graphs)
    info.codebook_fingerprint = manifest.codebook.fingerprint
    info.items, info.id_type = manifest.codebook.items, manifest.codebook.id_type
    info.served_seconds = status.served_seconds
    info.limits.CopyFrom(
        management_pb2.Limits(
            max_candidates=limits.max_candidates,
            max_history=limits.max_history,
            max_request_bytes=limits.max_request_bytes,
            feature_width=manifest.features.width,
        )
    )
    return info

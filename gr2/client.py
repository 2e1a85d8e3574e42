"""A typed client of the re-ranking service. Needs grpcio, protobuf and NumPy, nothing else of gr2's dependencies."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import grpc
from numpy.typing import ArrayLike, NDArray

from gr2.credentials import channel_credentials
from gr2.errors import Gr2Error, OverloadError, RequestError
from gr2.serving.ranking import CandidateStatus, RankedItem, Ranking, Timings
from gr2.serving.request import float_array, split_ids, text, whole_number
from gr2.v1 import management_pb2, reranker_pb2

if TYPE_CHECKING:
    from gr2.catalog import ItemId

__all__ = ["Client", "service_config"]

SERVICE: str = reranker_pb2.DESCRIPTOR.services_by_name["Reranker"].full_name
MANAGEMENT: str = management_pb2.DESCRIPTOR.services_by_name["Management"].full_name
# grpc.health.v1: HealthCheckRequest{service} and HealthCheckResponse{SERVING}, spelled out to need no further package.
HEALTH_REQUEST = b"\x0a" + bytes([len(SERVICE)]) + SERVICE.encode()
HEALTH_SERVING = b"\x08\x01"


# A server that hangs, or whose machine is gone without a word, is found by asking. In milliseconds.
ALIVE = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

Balancing = Literal["round_robin", "weighted_round_robin"]


def service_config(balancing: Balancing = "round_robin", *, attempts: int = 4) -> str:
    """The service config of gRPC for replicas behind one name, as JSON for any language's client.

    Requests go round the replicas whose health is SERVING, or by the load that they report; one that meets a replica
    that stops or dies is asked again elsewhere, at most `attempts` times in all (2 to 5). Deadlines are the caller's.
    """
    retry = {
        "maxAttempts": attempts,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    weights = {"blackoutPeriod": "1s", "weightExpirationPeriod": "30s", "weightUpdatePeriod": "1s"}
    config = {
        "loadBalancingConfig": [{balancing: weights if balancing == "weighted_round_robin" else {}}],
        "healthCheckConfig": {"serviceName": SERVICE},
        "methodConfig": [{"name": [{"service": SERVICE}], "waitForReady": True, "retryPolicy": retry}],
    }
    return json.dumps(config, indent=2)


class Client:
    """A connection to re-ranking servers, safe to share between threads. Close it, or use it in a `with` block.

    `address` is a server's, or what gRPC resolves to several: `dns:///gr2.example:50051`, `ipv4:10.0.0.1:1,10.0.0.2:1`.
    `balancing` shares requests among them, by `service_config`. `ca` is the PEM file of the authority of the server's
    certificate, for TLS; `cert` and `key` are the client's own. `token` is what `gr2 token` printed.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:50051",
        *,
        balancing: Balancing | None = None,
        ca: str = "",
        cert: str = "",
        key: str = "",
        token: str = "",
    ) -> None:
        """Raises what `channel_credentials` does."""
        self.address = address
        options: list[tuple[str, int | str]] = [("grpc.max_receive_message_length", -1)]
        if balancing is not None:
            options += [("grpc.service_config", service_config(balancing)), *ALIVE]
        if (credentials := channel_credentials(ca, cert, key)) is not None:
            self._channel = grpc.secure_channel(address, credentials, options=options)
        else:
            self._channel = grpc.insecure_channel(address, options=options)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None
        self._rerank = self._channel.unary_unary(
            f"/{SERVICE}/Rerank",
            request_serializer=reranker_pb2.RerankRequest.SerializeToString,
            response_deserializer=reranker_pb2.RerankResponse.FromString,
        )
        self._health = self._channel.unary_unary("/grpc.health.v1.Health/Check")

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls at work are cancelled."""
        self._channel.close()

    def wait_ready(self, timeout: float = 10.0) -> None:
        """Return once the server says that it serves. Raises Gr2Error after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        reason = "it does not serve yet"
        while (left := deadline - time.monotonic()) > 0:
            try:
                if self._health(HEALTH_REQUEST, timeout=left, wait_for_ready=True) == HEALTH_SERVING:
                    return
            except grpc.RpcError as error:
                reason = _details(error)
            except ValueError as error:
                raise Gr2Error(f"{self.address}: {error}") from error
            time.sleep(min(0.02, max(0.0, deadline - time.monotonic())))
        raise Gr2Error(f"{self.address}: no server ready after {timeout:g} s ({reason})")

    def rerank(
        self,
        history: Sequence[ItemId] | NDArray[Any],
        candidates: Sequence[ItemId] | NDArray[Any],
        *,
        scores: ArrayLike | None = None,
        features: ArrayLike | None = None,
        top_n: int = 0,
        timeout: float = 1.0,
        request_id: str = "",
        bundle: str = "",
        fallback: bool = False,
        urgent: bool = True,
    ) -> Ranking:
        """The slate in the model's order; arguments as for `gr2.serving.engine.Engine.rerank`.

        `timeout` is in seconds. A server that cannot rank in that time refuses at once; with `fallback` it returns the
        incoming order instead, and says so in the answer. Requests that are not `urgent` wait for those that are.
        `bundle` names one of the server's, empty for its default.
        Raises RequestError if the request breaks a rule, OverloadError if the server refuses work or cannot be reached,
        and Gr2Error for a missed deadline or a failure of the server.
        """
        request = _request(history, candidates, scores, features, top_n, request_id)
        request.fallback = fallback
        with _naming("bundle"):
            request.bundle = text("bundle", bundle)
        if not urgent:
            request.priority = reranker_pb2.PRIORITY_LOW
        try:
            response = self._rerank(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._translate(error, timeout) from error
        except ValueError as error:
            raise Gr2Error(f"{self.address}: {error}") from error
        return _ranking(response)

    def server_info(self, *, reload: bool = False, timeout: float = 10.0) -> management_pb2.ServerInfo:
        """What the server serves and how it is; with `reload` after it has looked for new versions of its bundles.

        Raises OverloadError if it cannot be reached, and Gr2Error for a missed deadline or a refusal.
        """
        kind = management_pb2.ReloadRequest if reload else management_pb2.ServerInfoRequest
        call = self._channel.unary_unary(
            f"/{MANAGEMENT}/{'Reload' if reload else 'GetServerInfo'}",
            request_serializer=kind.SerializeToString,
            response_deserializer=management_pb2.ServerInfo.FromString,
        )
        try:
            found: management_pb2.ServerInfo = call(kind(), timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._translate(error, timeout) from error
        return found

    def _translate(self, error: grpc.RpcError, timeout: float) -> Gr2Error:
        code, details = error.code(), _details(error)
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            field, _, reason = details.partition(": ")
            return RequestError(field, reason)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            if "message larger than max" in details:
                return RequestError("request", details)
            return OverloadError(f"{self.address}: overloaded: {details}")
        # A server that shuts down cancels what reaches it in that moment.
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return OverloadError(f"{self.address}: cannot be reached: {details}")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Gr2Error(f"{self.address}: no answer within {timeout:g} s")
        return Gr2Error(f"{self.address}: {code.name}: {details}")


def _request(
    history: Sequence[ItemId] | NDArray[Any],
    candidates: Sequence[ItemId] | NDArray[Any],
    scores: ArrayLike | None,
    features: ArrayLike | None,
    top_n: int,
    request_id: str,
) -> reranker_pb2.RerankRequest:
    request = reranker_pb2.RerankRequest()
    ids = {"history": split_ids("history", history), "candidates": split_ids("candidates", candidates)}
    request.scores.extend(_flat("scores", scores, None))
    ints, strings = ids["candidates"]
    request.features.extend(_flat("features", features, len(ints) + len(strings)))
    for field, (ints, strings) in ids.items():
        with _naming(field):
            getattr(request, field).ints.extend(ints)
            getattr(request, field).strings.extend(strings)
    with _naming("top_n"):
        request.top_n = whole_number("top_n", top_n)
    with _naming("request_id"):
        request.request_id = text("request_id", request_id)
    return request


def _flat(field: str, values: ArrayLike | None, rows: int | None) -> list[float]:
    """The numbers in the order of the wire, where their shape is lost: of one dimension, or of two with `rows` rows."""
    if values is None:
        return []
    array = float_array(field, values)
    if rows is None and array.ndim != 1:
        raise RequestError(field, f"must be a list of numbers, got shape {array.shape}")
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.size and len(array) != rows):
        raise RequestError(field, f"must be one row a candidate ({rows}) or flat, got shape {array.shape}")
    return array.ravel().tolist()


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Turns protobuf's complaint about a value into a RequestError about `field`."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise RequestError(field, str(error)) from error


def _ranking(response: reranker_pb2.RerankResponse) -> Ranking:
    items = [
        RankedItem(
            item.index,
            item.string_id if item.HasField("string_id") else item.int_id,
            item.score,
            CandidateStatus(item.status),
        )
        for item in response.ranking
    ]
    timings = Timings(*[getattr(response.timings, name) for name in Timings.__slots__])
    return Ranking(
        items, response.bundle_version, timings, response.unknown_history, response.request_id, response.fallback
    )


def _details(error: grpc.RpcError) -> str:
    return str(error.details()) if isinstance(error, grpc.Call) else str(error)

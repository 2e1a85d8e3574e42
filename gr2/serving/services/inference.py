"""`inference.GRPCInferenceService`, the Open Inference Protocol v2: a second face of the same engine.

`ModelInfer` becomes a `Rerank` call and takes its way: the same queue, the same refusals, the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError

from gr2.errors import RequestError
from gr2.serving.access.arrivals import NoRoomError
from gr2.serving.access.calls import Patience, in_pool
from gr2.serving.access.listener import Listener
from gr2.serving.bundles.repository import BundleStatus, Repository
from gr2.serving.services.servicer import METHOD, Servicer
from gr2.serving.services.tensors import metadata_of, request_of, response_of
from gr2.v1 import open_inference_pb2 as inference
from gr2.v1 import reranker_pb2
from gr2.version import __version__

__all__ = ["INFER", "INFERENCE", "InferenceService"]

INFERENCE: str = inference.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
INFER = f"/{INFERENCE}/ModelInfer"
THREADS, WAIT = 2, 5.0


class _Arrived(NamedTuple):
    method: str


class InferenceService(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The protocol's six methods; `serving` says whether the server takes requests."""

    def __init__(
        self, servicer: Servicer, repository: Repository, patience: Patience, serving: Callable[[], bool]
    ) -> None:
        self._servicer, self._repository, self._serving = servicer, repository, serving
        self._pool = Listener(THREADS, "infer", patience, WAIT)
        self._about = {
            "ServerLive": self._method(inference.ServerLiveRequest, self._live),
            "ServerReady": self._method(inference.ServerReadyRequest, self._ready),
            "ModelReady": self._method(inference.ModelReadyRequest, self._model_ready),
            "ServerMetadata": self._method(inference.ServerMetadataRequest, self._server),
            "ModelMetadata": self._method(inference.ModelMetadataRequest, self._model),
        }
        # The servicer has one handler that answers, and one for each reason to refuse.
        self._infer: dict[int, grpc.RpcMethodHandler] = {}

    def handler(self) -> grpc.GenericRpcHandler:
        """What to add to a server."""
        return self

    def shutdown(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a call that has just arrived; None for another service's."""
        if handler_call_details.method == INFER:
            inner = self._servicer.service(_Arrived(METHOD))
            return self._infer.get(id(inner)) or self._infer.setdefault(id(inner), self._around(inner))
        service, _, method = handler_call_details.method.lstrip("/").partition("/")
        return self._about.get(method) if service == INFERENCE else None

    def _around(self, inner: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        """`ModelInfer` by way of one of the handlers of `Rerank`."""

        def infer(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            taken: list[inference.ModelInferRequest] = []
            try:
                reply = inner.stream_unary(self._requests(messages, taken), context)
            except RequestError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            ranked = reranker_pb2.RerankResponse.FromString(reply)
            name = taken[0].model_name or self._repository.default
            return response_of(taken[0], ranked, name).SerializeToString()

        pool = getattr(inner.stream_unary, "experimental_thread_pool", None)
        return grpc.stream_unary_rpc_method_handler(infer if pool is None else in_pool(pool, infer))

    def _requests(self, messages: Iterator[bytes], taken: list[inference.ModelInferRequest]) -> Iterator[bytes]:
        """The messages as those of `Rerank`; what came is kept in `taken`."""
        try:
            for message in messages:
                yield self._request(message, taken)
        except NoRoomError as error:
            raise NoRoomError(str(error), self._request(error.data, taken)) from error

    def _request(self, message: bytes, taken: list[inference.ModelInferRequest]) -> bytes:
        try:
            request = inference.ModelInferRequest.FromString(message)
        except DecodeError as error:
            raise RequestError("request", "the bytes are not an inference.ModelInferRequest") from error
        version = request.model_version
        if version and self._served(request.model_name, version) is None:
            raise RequestError("model_version", f"{version!r} is not the one served; leave it out to take that")
        taken.append(request)
        return request_of(request).SerializeToString()

    def _method(self, kind: Any, answer: Callable[[Any, grpc.ServicerContext], Any]) -> grpc.RpcMethodHandler:
        def behavior(messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
            return answer(self._pool.only_message(messages, context), context)

        return grpc.stream_unary_rpc_method_handler(
            in_pool(self._pool, behavior),
            request_deserializer=kind.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    def _live(self, _: Any, __: grpc.ServicerContext) -> inference.ServerLiveResponse:
        return inference.ServerLiveResponse(live=True)

    def _ready(self, _: Any, __: grpc.ServicerContext) -> inference.ServerReadyResponse:
        return inference.ServerReadyResponse(ready=self._serving())

    def _model_ready(
        self, request: inference.ModelReadyRequest, _: grpc.ServicerContext
    ) -> inference.ModelReadyResponse:
        ready = self._serving() and self._served(request.name, request.version) is not None
        return inference.ModelReadyResponse(ready=ready)

    def _server(self, _: Any, __: grpc.ServicerContext) -> inference.ServerMetadataResponse:
        return inference.ServerMetadataResponse(name="gr2", version=__version__)

    def _model(
        self, request: inference.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> inference.ModelMetadataResponse:
        status = self._served(request.name, request.version)
        if status is None or status.bundle is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.name!r} of version {request.version!r}")
        assert status is not None
        assert status.bundle is not None
        return metadata_of(status.bundle, status.name, status.label)

    def _served(self, name: str, version: str) -> BundleStatus | None:
        """The bundle of that name, if it is served in that version, or in any where none is asked for."""
        for status in self._repository.status():
            if status.name == (name or self._repository.default) and status.bundle is not None:
                return status if version in ("", status.label, status.bundle.version) else None
        return None

"""The standard services, health and reflection, on threads of their own: neither can hold up the other or the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from gr2.serving.access.calls import CallPool, Patience, in_pool, messages_of, only_message

__all__ = ["HealthService", "ReflectionService"]

HEALTH_THREADS, REFLECTION_THREADS = 8, 4
HEALTH_WAIT, REFLECTION_WAIT = 5.0, 30.0  # seconds


class HealthService:
    """grpc.health.v1: `Check`, and `Watch` streams that hold no thread. All `services` start as NOT_SERVING."""

    def __init__(self, services: Sequence[str], patience: Patience) -> None:
        self._patience = patience
        self._servicer = health.HealthServicer()
        self._pool = CallPool(HEALTH_THREADS, "health")
        self.show(dict.fromkeys(services, False))

    def handler(self) -> grpc.GenericRpcHandler:
        """What to add to a server."""

        def check(
            messages: Iterator[health_pb2.HealthCheckRequest], context: grpc.ServicerContext
        ) -> health_pb2.HealthCheckResponse:
            request = only_message(messages, context, self._patience, HEALTH_WAIT)
            return self._servicer.Check(request, context)

        def watch(
            messages: Iterator[health_pb2.HealthCheckRequest],
            context: grpc.ServicerContext,
            send: Callable[[health_pb2.HealthCheckResponse], None],
        ) -> None:
            request = only_message(messages, context, self._patience, HEALTH_WAIT)
            self._servicer.Watch(request, context, send)

        watch.experimental_non_blocking = True  # type: ignore[attr-defined]
        types = {
            "request_deserializer": health_pb2.HealthCheckRequest.FromString,
            "response_serializer": health_pb2.HealthCheckResponse.SerializeToString,
        }
        methods = {
            "Check": grpc.stream_unary_rpc_method_handler(in_pool(self._pool, check), **types),
            "Watch": grpc.stream_stream_rpc_method_handler(in_pool(self._pool, watch), **types),
        }
        return grpc.method_handlers_generic_handler(health.SERVICE_NAME, methods)

    def show(self, serving: Mapping[str, bool]) -> None:
        """Say of each service whether it serves."""
        statuses = health_pb2.HealthCheckResponse
        for name, serves in serving.items():
            self._servicer.set(name, statuses.SERVING if serves else statuses.NOT_SERVING)

    def stop(self) -> None:
        """Say NOT_SERVING for good."""
        self._servicer.enter_graceful_shutdown()

    def shutdown(self) -> None:
        """End the threads."""
        self._pool.shutdown()


class ReflectionService:
    """grpc.reflection.v1alpha for `services`. An open stream holds a thread; a silent one is ended after a while."""

    def __init__(self, services: Sequence[str], patience: Patience) -> None:
        self._patience = patience
        self._servicer = reflection.ReflectionServicer(services)
        self._pool = CallPool(REFLECTION_THREADS, "reflect")

    def handler(self) -> grpc.GenericRpcHandler:
        """What to add to a server."""

        def reflect(
            messages: Iterator[reflection_pb2.ServerReflectionRequest], context: grpc.ServicerContext
        ) -> Iterator[reflection_pb2.ServerReflectionResponse]:
            heard = messages_of(messages, context, self._patience, REFLECTION_WAIT)
            yield from self._servicer.ServerReflectionInfo(heard, context)

        method = grpc.stream_stream_rpc_method_handler(
            in_pool(self._pool, reflect),
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, {"ServerReflectionInfo": method})

    def shutdown(self) -> None:
        """End the threads."""
        self._pool.shutdown()

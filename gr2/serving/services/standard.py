"""The standard services, health and reflection, on threads of their own: neither can hold up the other or the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from gr2.serving.access.calls import Patience, in_pool
from gr2.serving.access.listener import Listener

__all__ = ["HealthService", "ReflectionService"]

HEALTH_THREADS, REFLECTION_THREADS = 8, 4
HEALTH_WAIT, REFLECTION_WAIT = 5.0, 30.0  # seconds
REFLECTIONS = 16  # streams


class HealthService:
    """grpc.health.v1: `Check`, and `Watch` streams that hold no thread. All `services` start as NOT_SERVING."""

    def __init__(self, services: Sequence[str], patience: Patience) -> None:
        self._servicer = health.HealthServicer()
        self._pool = Listener(HEALTH_THREADS, "health", patience, HEALTH_WAIT)
        self.show(dict.fromkeys(services, False))

    def handler(self) -> grpc.GenericRpcHandler:
        """What to add to a server."""

        def check(
            messages: Iterator[health_pb2.HealthCheckRequest], context: grpc.ServicerContext
        ) -> health_pb2.HealthCheckResponse:
            request = self._pool.only_message(messages, context)
            return self._servicer.Check(request, context)

        def watch(
            messages: Iterator[health_pb2.HealthCheckRequest],
            context: grpc.ServicerContext,
            send: Callable[[health_pb2.HealthCheckResponse], None],
        ) -> None:
            request = self._pool.only_message(messages, context)
            self._servicer.Watch(request, _Watched(context), send)

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


class _Watched:
    """A `Watch` call, which may be over before grpc's servicer asks to hear of its end, and would then be kept."""

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context

    def add_callback(self, tell: Callable[[], None]) -> None:
        """Have it told that the call is over, now or later."""
        if not self._context.add_callback(tell):
            tell()


class ReflectionService:
    """grpc.reflection.v1alpha for `services`. An open stream holds a thread; a silent one is ended after a while.

    That is half a second where others wait for a thread.
    """

    def __init__(self, services: Sequence[str], patience: Patience) -> None:
        self._servicer = reflection.ReflectionServicer(services)
        self._pool = Listener(REFLECTION_THREADS, "reflect", patience, REFLECTION_WAIT, most=REFLECTIONS)

    def handler(self) -> grpc.GenericRpcHandler:
        """What to add to a server."""

        def reflect(
            messages: Iterator[reflection_pb2.ServerReflectionRequest], context: grpc.ServicerContext
        ) -> Iterator[reflection_pb2.ServerReflectionResponse]:
            yield from self._servicer.ServerReflectionInfo(self._pool.messages_of(messages, context), context)

        method = grpc.stream_stream_rpc_method_handler(
            in_pool(self._pool, reflect),
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, {"ServerReflectionInfo": method})

    def shutdown(self) -> None:
        """End the threads."""
        self._pool.shutdown()

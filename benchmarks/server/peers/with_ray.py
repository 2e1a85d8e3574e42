"""The handler behind Ray Serve: `python -m benchmarks.server.peers.with_ray PORT`."""

from __future__ import annotations

import sys
import time

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.server.peers.handler import make_handler


@serve.deployment(num_replicas=1, max_ongoing_requests=64, ray_actor_options={"num_cpus": 1})
class Reranker:
    """One replica; bytes in, bytes out."""

    def __init__(self) -> None:
        self._handler = make_handler()

    async def __call__(self, request: Request) -> Response:
        """The answer."""
        return Response(self._handler.answer(await request.body()), media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Reranker.bind(), route_prefix="/inference")
    while True:
        time.sleep(60)

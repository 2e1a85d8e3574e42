"""The handler behind BentoML: `bentoml serve benchmarks.server.peers.with_bentoml:Reranker --port PORT`."""

from __future__ import annotations

import bentoml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.server.peers.handler import make_handler

# BentoML's own endpoints take no bare bytes; what is mounted runs in the same worker, without their parsing.
app = Starlette()


@bentoml.service(workers=1, traffic={"timeout": 60})
@bentoml.asgi_app(app, path="/raw")
class Reranker:
    """One worker; bytes in, bytes out."""

    def __init__(self) -> None:
        handler = make_handler()

        async def answer(request: Request) -> Response:
            return Response(handler.answer(await request.body()), media_type="application/octet-stream")

        app.router.routes.append(Route("/inference", answer, methods=["POST"]))

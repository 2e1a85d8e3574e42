"""The handler behind LitServe: `python -m benchmarks.server.peers.with_litserve PORT`."""

# LitServe reads the annotation of `decode_request` as an object, not as text.
import sys
from typing import Annotated

import litserve
from fastapi import Body
from starlette.responses import Response

from benchmarks.server.peers.handler import make_handler


class Reranker(litserve.LitAPI):
    """One worker; bytes in, bytes out."""

    def setup(self, device: str) -> None:
        """Load the model."""
        self._handler = make_handler()

    def decode_request(self, request: Annotated[bytes, Body()]) -> bytes:
        """The body as it is."""
        return request

    def predict(self, data: bytes) -> bytes:
        """The answer."""
        return self._handler.answer(data)

    def encode_response(self, output: bytes) -> Response:
        """The answer as it is."""
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    server = litserve.LitServer(Reranker(api_path="/inference"), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False, log_level="error"
    )

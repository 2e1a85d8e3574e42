"""The handler behind mosec: `python -m benchmarks.server.peers.with_mosec --port PORT`."""

from __future__ import annotations

from mosec import Server, Worker

from benchmarks.server.peers.handler import make_handler


class Reranker(Worker):
    """One worker; bytes in, bytes out."""

    def __init__(self) -> None:
        super().__init__()
        self._handler = make_handler()

    def deserialize(self, data: bytes) -> bytes:
        """The body as it is."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """The answer as it is."""
        return data

    def forward(self, data: bytes) -> bytes:
        """The answer."""
        return self._handler.answer(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Reranker, num=1)
    server.run()

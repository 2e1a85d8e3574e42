"""An empty grpcio server: `python -m ... [FILE]`; prints its port.

It answers every call with the bytes of the file. Without one it refuses every call as grpcio does by itself where too
many are at work, which is the cheapest refusal that it has: no message is read, no handler run.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

__all__ = ["METHOD", "main"]

METHOD = "/nothing.Nothing/Nothing"
RERANK = "/gr2.v1.Reranker/Rerank"


def main() -> None:
    """Serve until killed."""
    reply = Path(sys.argv[1]).read_bytes() if len(sys.argv) > 1 else b""
    server = grpc.server(
        ThreadPoolExecutor(len(os.sched_getaffinity(0)) + 1),
        options=[("grpc.so_reuseport", 0)],
        maximum_concurrent_rpcs=None if len(sys.argv) > 1 else 0,
    )
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: reply)
    for each in (METHOD, RERANK):
        _, service, method = each.split("/")
        server.add_registered_method_handlers(service, {method: handler})
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()

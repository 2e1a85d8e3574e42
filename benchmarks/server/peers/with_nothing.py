"""An empty grpcio server, which answers every call with the same bytes: `python -m ... SIZE`; prints its port."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

__all__ = ["METHOD", "main"]

METHOD = "/nothing.Nothing/Nothing"


def main() -> None:
    """Serve until killed; the reply is the content of the file that the first argument names."""
    reply = Path(sys.argv[1]).read_bytes()
    server = grpc.server(ThreadPoolExecutor(len(os.sched_getaffinity(0)) + 1), options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: reply)
    _, service, method = METHOD.split("/")
    server.add_registered_method_handlers(service, {method: handler})
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()

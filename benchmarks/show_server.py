"""Every figure of the server, one line each: `python -m benchmarks.show_server`.

What takes long, or other servers, is read from docs/results/; the rest runs now.
"""

from __future__ import annotations

from benchmarks.results import Record
from benchmarks.show import show
from benchmarks.show_spine import judged_tests

__all__ = ["main"]

STORED = {
    "server.overhead": "make server-overhead",
    "server.comparison": "make server-comparison",
    "server.overload": "make server-overload",
    "server.memory": "make server-memory",
    "server.faults": "make server-faults",
    "server.equality": "make server-equality",
}
TESTS = {
    "health, reflection, deadlines, limits, drain: a real server, a real client": ["tests/serving/test_server.py"],
    "bundles swapped, refused, several, in the shadow": [
        "tests/serving/test_repository.py", "tests/serving/test_shadow.py",
    ],
    "TLS, mutual TLS, certificates replaced, tokens": [
        "tests/serving/test_certificates.py", "tests/serving/test_tokens.py",
    ],
    "several processes: started again, stopped together": ["tests/serving/test_processes.py"],
    "metrics, traces and logs of a real server; gr2 top; the dashboard's queries": [
        "tests/serving/test_metrics.py", "tests/serving/test_observer.py", "tests/serving/test_logs.py",
        "tests/serving/test_watched_process.py", "tests/test_top.py", "tests/deploy/test_grafana.py",
    ],
    "Open Inference Protocol v2: the answers of Rerank": ["tests/serving/test_inference.py"],
    "manifests of Kubernetes and KServe, container file": ["tests/deploy/test_manifests.py"],
    "load generator: latency from when requests were due; one that is the bottleneck is refused": ["tests/load"],
    "a Node client (@grpc/grpc-js) gets Python's answer": ["tests/serving/test_node_client.py"],
}  # fmt: skip


def checks() -> Record:
    """What runs now."""
    figures = [judged_tests(what, "all pass", *arguments) for what, arguments in TESTS.items()]
    return Record("server.checks", "Checks of the server", "make show-server", figures)


def main() -> None:
    """Print one line a figure, store the fresh ones, and exit with 1 if a figure is short."""
    show("server", "the server", stored=STORED, measures=[("checks of the server", checks)])


if __name__ == "__main__":
    main()

"""Every figure of the server, one line each: `python -m benchmarks.server.show`.

What takes long, or other servers, is read from docs/results/; the rest runs now, in about a quarter of an hour.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial

from benchmarks.results import FOLDER, ROOT, Record, load
from benchmarks.show import show
from benchmarks.spine.show import judged_tests

__all__ = ["main"]

STORED = {
    "server.comparison": "make server-comparison",
    "server.memory": "make server-memory",
    "server.faults": "make server-faults",
}
FRESH = {
    "server.overhead": "benchmarks.server.overhead",
    "server.overload": "benchmarks.server.overload",
    "server.equality": "benchmarks.server.equality",
}
TESTS = {
    "bytes to bytes in the core: the official parser's verdicts, Python's bytes and errors": [
        "tests/core/test_parsed_request.py", "tests/serving/test_request.py", "tests/serving/test_engine.py",
        "tests/serving/services/test_replies.py", "tests/serving/services/test_servicer.py",
        "tests/serving/models/test_native_model.py", "tests/serving/models/test_core_model.py",
    ],
    "admission: a bounded queue, deadlines, the incoming order, two priorities; refusals and silence take no thread": [
        "tests/serving/test_admission.py", "tests/serving/access/test_arrivals.py",
        "tests/serving/access/test_calls.py", "tests/serving/access/test_direct.py",
        "tests/serving/access/test_direct_endings.py", "tests/serving/access/test_listener.py",
        "tests/serving/access/test_open_calls.py",
    ],
    "encoded histories: by what they are, bounded, of one bundle; memory of a request": [
        "tests/core/test_prefix_cache.py", "tests/serving/models/test_split_model.py",
        "tests/serving/models/test_memory.py", "tests/serving/models/test_heap.py",
    ],
    "batches for a GPU: each request its own answer, error and end": [
        "tests/serving/models/test_batcher.py", "tests/serving/models/test_padding.py",
        "tests/serving/models/test_device.py", "tests/serving/models/test_device_model.py",
    ],
    "health, reflection, deadlines, limits, drain: a real server, a real client": [
        "tests/serving/test_server.py", "tests/serving/access/test_transport.py", "tests/serving/test_config.py",
        "tests/serving/services/test_management.py", "tests/serving/test_rerank_command.py",
    ],
    "replicas: the published service config, balanced by the load that they report": [
        "tests/test_client.py", "tests/serving/access/test_load.py",
    ],
    "bundles swapped, refused, several, in the shadow": [
        "tests/serving/bundles/test_repository.py", "tests/serving/bundles/test_shadow.py",
        "tests/serving/bundles/test_versions.py", "tests/serving/bundles/test_handle.py",
    ],
    "TLS, mutual TLS, certificates replaced, tokens": [
        "tests/serving/access/test_certificates.py", "tests/serving/access/test_tokens.py",
    ],
    "several processes: started again, stopped together": ["tests/serving/test_processes.py"],
    "metrics, traces and logs of a real server; gr2 top; the dashboard's queries": [
        "tests/serving/test_metrics.py", "tests/serving/observing/test_observer.py",
        "tests/serving/observing/test_logs.py", "tests/serving/test_watched_process.py", "tests/test_top.py",
        "tests/deploy/test_grafana.py",
    ],
    "Open Inference Protocol v2: the answers of Rerank": ["tests/serving/services/test_inference.py"],
    "manifests of Kubernetes and KServe, container file": ["tests/deploy/test_manifests.py"],
    "load generator: latency from when requests were due; one that is the bottleneck is refused": ["tests/load"],
    "a Node client (@grpc/grpc-js) gets Python's answer": ["tests/serving/test_node_client.py"],
}  # fmt: skip


def fresh(name: str) -> Record:
    """The record of a measurement that runs now, in a process of its own. Raises RuntimeError if it makes none."""
    path = FOLDER / f"{name}.json"
    before = path.stat().st_mtime_ns if path.exists() else 0
    run = subprocess.run([sys.executable, "-m", FRESH[name]], cwd=ROOT, capture_output=True, text=True, check=False)
    record = load(name)
    if record is None or path.stat().st_mtime_ns == before:
        raise RuntimeError(f"{FRESH[name]} ended with {run.returncode}: {run.stderr[-2000:]}")
    return record


def checks() -> Record:
    """What runs now."""
    figures = [judged_tests(what, "all pass", *arguments) for what, arguments in TESTS.items()]
    return Record("server.checks", "Checks of the server", "make show-server", figures)


def main() -> None:
    """Print one line a figure, store the fresh ones, and exit with 1 if a figure is short."""
    measures = [(name, partial(fresh, name)) for name in FRESH]
    show("server", "the server", stored=STORED, measures=[*measures, ("checks of the server", checks)])


if __name__ == "__main__":
    main()

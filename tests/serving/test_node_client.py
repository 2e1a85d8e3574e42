"""A client in another language, from the .proto file alone, gets the same answers."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gr2.serving.server import Server

MakeBundle = Callable[..., Path]
ROOT = Path(__file__).parents[2]
SOURCES = Path(__file__).parent / "node_client"
BIG = 2**62 + 1


@pytest.fixture(scope="module")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the Node.js client with its packages installed."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    folder = Path(shutil.copytree(SOURCES, tmp_path_factory.mktemp("node") / "client"))
    install = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
    try:
        done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm install did not finish in 120 s: no package registry?")
    if done.returncode != 0:
        pytest.skip(f"npm install failed: {done.stderr.strip()[:300]}")
    return folder


@pytest.fixture(scope="module")
def server(make_bundle: MakeBundle) -> Iterator[Server]:
    server = Server(make_bundle(width=2), port=0)
    server.start()
    yield server
    server.stop(5)


def call(folder: Path, address: str, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    command = ["node", "rerank.js", address, str(ROOT / "proto")]
    done = subprocess.run(command, cwd=folder, input=lines, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_node_client_gets_the_same_ranking(node_client: Path, server: Server) -> None:
    rng = np.random.default_rng(0)
    history = [1000, 1007, 5]
    candidates = [BIG, *[1000 + 7 * int(item) for item in rng.choice(300, size=40, replace=False)]]
    scores, features = rng.normal(size=41).astype(np.float32), rng.normal(size=(41, 2)).astype(np.float32)
    request = {
        "request_id": "from node",
        "history": {"ints": history},
        "candidates": {"ints": [str(item) for item in candidates]},
        "scores": scores.tolist(),
        "features": features.ravel().tolist(),
    }
    (response,) = call(node_client, server.address, request)
    expected = server.engine.rerank(history, candidates, scores=scores, features=features)
    got = [(item["index"], int(item["int_id"]), np.float32(item["score"])) for item in response["ranking"]]
    assert got == [(item.index, item.item_id, np.float32(item.score)) for item in expected.items]
    assert response["ranking"][-1]["status"] == "CANDIDATE_STATUS_UNKNOWN_ITEM"
    assert response["ranking"][-1]["int_id"] == str(BIG)
    assert (response["request_id"], response["bundle_version"]) == ("from node", server.engine.version)
    assert response["unknown_history"] == 1
    assert int(response["timings"]["total_ns"]) > 0


def test_node_client_is_told_what_is_wrong(node_client: Path, server: Server) -> None:
    replies = call(node_client, server.address, {"candidates": {"ints": [7, 7]}}, {"candidates": {"strings": ["a"]}})
    assert replies == [
        {"code": "INVALID_ARGUMENT", "details": "candidates: must be distinct; 7 at positions 0, 1"},
        {"code": "INVALID_ARGUMENT", "details": "candidates: this catalogue's item IDs are int64, got strings"},
    ]

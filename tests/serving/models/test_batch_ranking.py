"""The ranking by the Triton kernel, in its interpreter and a process of its own, against the C++ core's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gr2.bundle import ModelSpec
from gr2.decoding import CandidateTrie
from gr2.kernels import make_decoder
from gr2.serving.models.batch_ranking import BatchRanking
from gr2.serving.models.clock import HostClock
from gr2.serving.models.padding import pad
from gr2.serving.models.query import Query, UnrankableError

pytest.importorskip("triton")
LEVELS, SIZE = 3, 16
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def make_queries(seed: int) -> list[Query]:
    rng = np.random.default_rng(seed)
    queries = []
    for count in (1, 7, 20, 12):
        codes = rng.integers(0, SIZE, (count, LEVELS)).astype(np.uint16)
        codes[-1] = codes[0]
        known = rng.random(count) < 0.8
        known[0] = True
        features = np.zeros((count, 3), np.float32)
        past = np.zeros((0, LEVELS), np.uint16)
        queries.append(Query(past, codes, known, features, CandidateTrie(codes, known, SIZE)))
    return queries


@pytest.mark.skipif(INTERPRETED, reason="it starts the process that interprets")
def test_kernel_ranks_as_the_core() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__))]
    folder = Path(__file__).parents[3]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


@pytest.mark.skipif(not INTERPRETED, reason="the kernel needs a GPU or the interpreter")
@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # the interpreter is NumPy
@pytest.mark.parametrize("normalization", ["raw", "local"])
def test_interpreted_kernel_ranks_as_the_core(normalization: str) -> None:
    import torch

    from gr2.kernels.device_decoder import DeviceDecoder

    queries = make_queries(3)
    batch = pad(queries, lambda size: np.empty(size, np.uint8), max_history=8, candidates=True)
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(len(queries), batch.rows, SIZE)).astype(np.float32))
    prior = torch.from_numpy(rng.normal(size=batch.known.shape).astype(np.float32))
    spec = ModelSpec(LEVELS, SIZE, 8, 16, 1, 20, normalization=normalization)  # type: ignore[arg-type]
    core, ranking = BatchRanking(spec, make_decoder("cpu")), BatchRanking(spec, DeviceDecoder("cpu"))
    clock = HostClock()
    expected = core(queries, batch, logits, prior, HostClock())
    found = ranking(queries, batch, logits, prior, clock)
    assert len(clock.durations()) == 1
    for place, query in enumerate(queries):
        own = logits[place, : query.trie.node_count].numpy(), prior[place, : len(query.codes)].numpy()
        for order, scores in (expected[place], found[place], query.rank(spec, *own)):
            assert order.tolist() == expected[place][0].tolist()
            np.testing.assert_allclose(scores, expected[place][1], atol=1e-5)
    logits[2, 0, 3] = float("nan")
    prior[0, 0] = float("inf")
    expected = core(queries, batch, logits, prior, HostClock())
    found = ranking(queries, batch, logits, prior, HostClock())
    for answers in (expected, found):
        assert [isinstance(answer, UnrankableError) for answer in answers] == [True, False, True, False]
        assert (answers[0].in_prior, answers[2].in_prior) == (True, False)
        assert str(answers[2]) == "logits are NaN or infinite"
    assert found[1][0].tolist() == expected[1][0].tolist()

"""The memory that a run takes, against what it is said to take."""

from __future__ import annotations

import inspect
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest

from gr2.bundle import Bundle, ModelSpec, graph_inputs
from gr2.decoding import CandidateTrie
from gr2.errors import RequestError
from gr2.export.random_bundle import write_random_bundle
from gr2.serving.engine import Engine
from gr2.serving.models.host_model import HostModel
from gr2.serving.models.memory import LARGE, LargeRuns, run_bytes
from gr2.serving.models.query import Query

LEVELS, SIZE, LONGEST = 4, 64, 400
# Prints how many bytes a run of EVENTS history items and COUNT candidates, KNOWN of them known, adds to a process.
MEASURE = """
from __future__ import annotations
import re, sys
from pathlib import Path
import numpy as np
from gr2.bundle import Bundle
from gr2.decoding import CandidateTrie
from gr2.serving.models.host_model import HostModel
from gr2.serving.models.query import Query

LEVELS, SIZE = 4, 64
{make_query}
def peak():
    # A process begins with its parent's ru_maxrss.
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

events, count, known = map(int, sys.argv[2:])
model = HostModel(Bundle.load(Path(sys.argv[1])))
model.score(make_query(1, 2, 2))
before = peak()
model.score(make_query(events, count, known))
print(peak() - before)
"""


def make_query(events: int, count: int, known: int) -> Query:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, SIZE, (count, LEVELS)).astype(np.uint16)
    found = np.arange(count) < known
    past = rng.integers(0, SIZE, (events, LEVELS)).astype(np.uint16)
    return Query(past, codes, found, np.zeros((count, 3), np.float32), CandidateTrie(codes, found, SIZE))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "bundle"
    return write_random_bundle(
        folder, items=2000, levels=LEVELS, level_size=SIZE, dim=16, layers=2, max_history=LONGEST, batched=False
    )


@pytest.mark.parametrize(("events", "count", "known"), [(LONGEST, 1024, 1), (20, 1024, 1024)])
def test_what_a_run_takes_is_known_before(bundle: Path, events: int, count: int, known: int) -> None:
    code = MEASURE.replace("{make_query}", inspect.getsource(make_query))
    argv = [sys.executable, "-c", code, str(bundle), *map(str, (events, count, known))]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    expected = make_query(events, count, known).run_bytes(Bundle.load(bundle).manifest.model)
    assert 0.5 * expected < int(done.stdout) < 1.2 * expected


def test_unknown_candidates_with_a_long_history_are_a_large_request(bundle: Path) -> None:
    spec, query = Bundle.load(bundle).manifest.model, make_query(LONGEST, 1024, 1)
    assert query.trie.node_count == LEVELS
    assert query.run_bytes(spec) > LARGE
    assert make_query(LONGEST, 100, 100).run_bytes(spec) < LARGE
    model = HostModel(Bundle.load(bundle))
    with model._runs.turn(LARGE + 1):
        assert len(model.score(make_query(LONGEST, 100, 100)).order) == 100


def test_a_large_run_waits_for_another_and_a_small_one_does_not() -> None:
    runs = LargeRuns()
    with ThreadPoolExecutor(1) as pool:
        with runs.turn(LARGE + 1) as options:
            assert options is not None
            with runs.turn(LARGE) as small:
                assert small is None
            other = pool.submit(lambda: runs.turn(LARGE + 1).__enter__())
            assert not wait([other], timeout=0.2).done
        assert other.result(timeout=10) is options


def test_wide_levels_count_by_their_logits() -> None:
    narrow, wide = (ModelSpec(LEVELS, size, 50, 64, 1, 20) for size in (256, 1 << 16))
    extra = run_bytes(wide, history=50, nodes=300, candidates=100) - run_bytes(
        narrow, history=50, nodes=300, candidates=100
    )
    assert extra == 8 * 300 * ((1 << 16) - 256)


def test_a_history_counts_by_its_tokens() -> None:
    items, codes = (ModelSpec(LEVELS, SIZE, 50, 64, 2, 20, encoding=encoding) for encoding in ("item", "code"))
    assert run_bytes(codes, history=50, nodes=300, candidates=100) == run_bytes(
        items, history=50 * LEVELS, nodes=300, candidates=100
    )


def test_evidence_counts_where_the_model_looks_at_the_candidates() -> None:
    plain = ModelSpec(LEVELS, SIZE, 4096, 64, 1, 20)
    looking = ModelSpec(LEVELS, SIZE, 4096, 64, 1, 20, inputs=tuple(graph_inputs(LEVELS, candidates=True)))
    sizes = {"history": 4000, "nodes": 4, "candidates": 1024}
    assert run_bytes(plain, **sizes) < 1 << 30 < run_bytes(looking, **sizes)


def test_request_that_takes_too_much_is_refused_and_says_what_to_do(bundle: Path) -> None:
    engine = Engine(bundle)
    known = engine.bundle.catalog().ids
    asked = {"history": known[:LONGEST], "candidates": known[:1000]}
    assert len(engine.rerank(**asked).items) == 1000
    engine.most_bytes = 100 << 20
    with pytest.raises(RequestError) as caught:
        engine.rerank(**asked)
    assert "candidates: 1000 of them with 400 history items take about" in str(caught.value)
    assert "at most 100 MB are given to a request: send fewer, or a shorter history" in str(caught.value)
    assert len(engine.rerank(known[:LONGEST], known[:100]).items) == 100

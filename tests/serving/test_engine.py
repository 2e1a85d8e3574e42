"""The engine against a plain oracle: every candidate alone through the graph, log-softmaxes summed, then sorted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from gr2.bundle import Bundle, FeatureSpec, write_bundle
from gr2.errors import BundleError, RequestError
from gr2.features import candidate_features
from gr2.serving.engine import Engine
from gr2.serving.ranking import CandidateStatus, Ranking

MakeBundle = Callable[..., Path]
KNOWN = [1000 + 7 * item for item in range(300)]
UNKNOWN = [3, 4, 5]


@pytest.fixture(scope="module")
def engine(make_bundle: MakeBundle) -> Engine:
    return Engine(make_bundle())


def oracle(
    bundle: Bundle, history: Sequence[Any], candidates: Sequence[Any], scores: Any = None, features: Any = None
) -> list[float | None]:
    """The score of each candidate, None where it is unknown."""
    model, codebook = bundle.manifest.model, bundle.codebook()
    session = ort.InferenceSession(str(bundle.graph), providers=["CPUExecutionProvider"])

    def look_up(ids: Sequence[Any]) -> Any:
        return codebook.lookup(np.array(ids, dtype=np.int64) if codebook.id_type == "int64" else list(ids))

    past, past_known = look_up(history)
    past = past[past_known][-model.max_history :].astype(np.int64)
    codes, known = look_up(candidates)
    dense = candidate_features(len(candidates), scores=scores, dense=features)
    length = model.levels
    mask = np.where(np.tri(length, dtype=bool), np.float32(0), np.float32(-1e9))
    result: list[float | None] = []
    for row in range(len(candidates)):
        if not known[row]:
            result.append(None)
            continue
        path = codes[row].astype(np.int64)
        nodes = {f"nodes_{depth}": path[depth - 1 : depth] for depth in range(1, length)}
        feed = {"history": past, **nodes, "mask": mask, "features": dense[row : row + 1]}
        if model.takes_candidates:
            feed["candidates"] = path[None, :]
        logits, prior = session.run(["logits", "prior"], feed)
        wide = logits.astype(np.float64)
        log_softmax = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
        result.append(float(log_softmax[np.arange(length), path].sum() + prior[0]))
    return result


def assert_ranks_as(ranking: Ranking, candidates: Sequence[Any], expected: list[float | None]) -> None:
    known = [row for row, score in enumerate(expected) if score is not None]
    unknown = [row for row, score in enumerate(expected) if score is None]
    assert sorted(item.index for item in ranking.items) == list(range(len(candidates)))
    assert [item.index for item in ranking.items[len(known) :]] == unknown
    for item in ranking.items:
        assert item.item_id == candidates[item.index]
        score = expected[item.index]
        status = CandidateStatus.UNKNOWN_ITEM if score is None else CandidateStatus.SCORED
        assert item.status is status
        assert item.score == pytest.approx(score or 0.0, abs=2e-5)
    for better, worse in pairwise(ranking.items[: len(known)]):
        assert (-better.score, better.index) < (-worse.score, worse.index)


@pytest.mark.parametrize("count", [1, 2, 10, 100])
@pytest.mark.parametrize("events", [0, 1, 5, 30])
def test_scores_equal_each_candidate_alone(engine: Engine, count: int, events: int) -> None:
    rng = np.random.default_rng(count * 100 + events)
    candidates = rng.choice(KNOWN + UNKNOWN, size=count, replace=False).tolist()
    history = rng.choice(KNOWN + UNKNOWN, size=events).tolist()
    ranking = engine.rerank(history, candidates)
    assert_ranks_as(ranking, candidates, oracle(engine.bundle, history, candidates))
    assert ranking.unknown_history == sum(item in UNKNOWN for item in history)


def test_string_ids_scores_and_features(make_bundle: MakeBundle) -> None:
    engine = Engine(make_bundle("string", width=3))
    ids = engine.bundle.catalog().ids
    rng = np.random.default_rng(0)
    candidates: list[Any] = [*rng.choice(ids, size=20, replace=False).tolist(), "unbekannt", ""]
    scores = rng.normal(size=22).astype(np.float32)
    features = rng.normal(size=(22, 3)).astype(np.float32)
    expected = oracle(engine.bundle, ids[:4], candidates, scores, features)
    ranking = engine.rerank(ids[:4], candidates, scores=scores, features=features)
    assert_ranks_as(ranking, candidates, expected)
    flat = engine.rerank(ids[:4], candidates, scores=scores.tolist(), features=features.ravel().tolist())
    assert flat.items == ranking.items


def test_other_depths_and_normalizations_of_a_bundle(make_bundle: MakeBundle) -> None:
    for levels in (1, 2, 3):
        engine = Engine(make_bundle(levels=levels, level_size=64))
        assert_ranks_as(engine.rerank([KNOWN[0]], KNOWN[:30]), KNOWN[:30], oracle(engine.bundle, KNOWN[:1], KNOWN[:30]))
    raw, local = Engine(make_bundle()), Engine(make_bundle(normalization="local"))
    assert raw.rerank([], KNOWN[:1]).items[0].score < 0
    assert local.rerank([], KNOWN[:1]).items[0].score == pytest.approx(0, abs=1e-6)


def test_model_with_a_head_gets_the_candidates_codes(make_bundle: MakeBundle) -> None:
    engine = Engine(make_bundle(head=True))
    candidates = [*KNOWN[:20], *UNKNOWN]
    ranking = engine.rerank(KNOWN[:5], candidates)
    assert_ranks_as(ranking, candidates, oracle(engine.bundle, KNOWN[:5], candidates))
    assert ranking.items != Engine(make_bundle()).rerank(KNOWN[:5], candidates).items


def test_equal_scores_keep_the_incoming_order(engine: Engine) -> None:
    for pair in ([KNOWN[0], KNOWN[1]], [KNOWN[1], KNOWN[0]]):
        items = engine.rerank([], pair).items
        assert [item.index for item in items] == [0, 1]
        assert items[0].score == items[1].score


def test_shuffling_the_slate_changes_no_score(engine: Engine) -> None:
    candidates = KNOWN[10:60]
    first = {item.item_id: item.score for item in engine.rerank(KNOWN[:5], candidates).items}
    mixed = np.random.default_rng(1).permutation(candidates).tolist()
    second = {item.item_id: item.score for item in engine.rerank(KNOWN[:5], mixed).items}
    assert second == pytest.approx(first, abs=1e-5)


def test_absent_features_count_as_zeros(make_bundle: MakeBundle) -> None:
    engine = Engine(make_bundle(width=2))
    assert engine.rerank([], KNOWN[:9]).items == engine.rerank([], KNOWN[:9], features=np.zeros((9, 2))).items
    assert (
        engine.rerank([], KNOWN[:9]).items
        != engine.rerank([], KNOWN[:9], features=np.ones((9, 2)) * range(9, 11)).items
    )


def test_all_unknown_is_answered_in_incoming_order(engine: Engine) -> None:
    ranking = engine.rerank(KNOWN[:3], UNKNOWN, top_n=2)
    assert [item.item_id for item in ranking.items] == UNKNOWN[:2]
    assert {(item.score, item.status) for item in ranking.items} == {(0.0, CandidateStatus.UNKNOWN_ITEM)}
    assert ranking.timings.model_ns == 0


def test_history_keeps_the_newest_known_items(engine: Engine) -> None:
    long = KNOWN[100:140]
    limit = engine.bundle.manifest.model.max_history
    newest = engine.rerank(long[-limit:], KNOWN[:50])
    with_unknown = [item for event in long for item in (event, UNKNOWN[0])]
    assert engine.rerank(long, KNOWN[:50]).items == newest.items
    assert engine.rerank(with_unknown, KNOWN[:50]).items == newest.items
    assert engine.rerank(with_unknown, KNOWN[:50]).unknown_history == 40
    assert engine.rerank(long[:limit], KNOWN[:50]).items != newest.items


def test_top_n_lists_the_best(engine: Engine) -> None:
    everything = engine.rerank([], KNOWN[:50])
    assert engine.rerank([], KNOWN[:50], top_n=7).items == everything.items[:7]
    assert engine.rerank([], KNOWN[:50], top_n=51).items == everything.items


def test_largest_request_is_answered(make_bundle: MakeBundle) -> None:
    engine = Engine(make_bundle(items=3000, level_size=256))
    candidates = [1000 + 7 * item for item in range(1024)]
    ranking = engine.rerank(candidates, candidates)
    assert sorted(item.index for item in ranking.items) == list(range(1024))


class Watched:
    """A session that notes how many runs of a large trie were under way at once."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self.session, self.lock = session, threading.Lock()
        self.running = self.most = self.large = 0

    def run(self, outputs: Any, feed: Any, options: Any) -> Any:
        large = len(feed["mask"]) > 1024
        with self.lock:
            self.large += large
            self.running += large
            self.most = max(self.most, self.running)
        try:
            return self.session.run(outputs, feed, options)
        finally:
            with self.lock:
                self.running -= large


def test_one_large_request_runs_at_a_time(make_bundle: MakeBundle) -> None:
    engine = Engine(make_bundle(items=3000, level_size=256))
    watched = Watched(engine._model._session)
    engine._model._session = watched
    candidates = [1000 + 7 * item for item in range(1024)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: engine.rerank([], candidates).items, range(4)))
    assert (watched.large, watched.most) == (4, 1)
    assert all(answer == answers[0] for answer in answers)


def test_reply_says_bundle_request_and_time(engine: Engine) -> None:
    ranking = engine.rerank(KNOWN[:3], KNOWN[:50], request_id="r-1")
    timings = ranking.timings
    phases = (timings.parse_ns, timings.lookup_ns, timings.trie_ns, timings.model_ns, timings.rank_ns)
    assert min(phases) > 0
    assert sum(phases) <= timings.total_ns < 60 * 10**9
    assert (ranking.bundle_version, ranking.request_id) == (engine.bundle.version, "r-1")


def test_broken_rule_is_a_request_error(engine: Engine) -> None:
    with pytest.raises(RequestError, match="candidates: must be distinct"):
        engine.rerank([], [1007, 1007])
    with pytest.raises(RequestError, match="features: this bundle's feature width is 0"):
        engine.rerank([], [1007], features=[[1.0]])


@pytest.mark.parametrize(
    "arguments",
    [{"top_n": 2.5}, {"top_n": None}, {"top_n": "1"}, {"top_n": True}, {"request_id": None}, {"request_id": 5}],
)
def test_argument_of_another_type_is_a_request_error(engine: Engine, arguments: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"{next(iter(arguments))}: must be"):
        engine.rerank([], KNOWN[:3], **arguments)


def test_invalid_unicode_is_a_request_error(make_bundle: MakeBundle) -> None:
    engine = Engine(make_bundle("string"))
    with pytest.raises(RequestError, match="candidates: item IDs must be valid Unicode"):
        engine.rerank([], ["\ud800"])


def test_features_that_overflow_the_model_are_the_callers_fault(make_bundle: MakeBundle) -> None:
    engine = Engine(make_bundle(width=2))
    with pytest.raises(RequestError, match="features: too large"):
        engine.rerank([], KNOWN[:3], features=np.full((3, 2), 3e38))


def test_model_without_finite_scores_is_refused_at_load(make_bundle: MakeBundle) -> None:
    with pytest.raises(BundleError, match=r"model\.onnx: warm-up with 0 history items and 1 candidates failed"):
        Engine(make_bundle(scale=float("inf")))


def test_eight_threads_get_the_serial_answers(engine: Engine) -> None:
    rng = np.random.default_rng(5)
    requests = [
        (rng.choice(KNOWN + UNKNOWN, size=rng.integers(0, 30)).tolist(), rng.choice(KNOWN, 20, replace=False).tolist())
        for _ in range(200)
    ]
    serial = [engine.rerank(*request).items for request in requests]
    barrier = threading.Barrier(8)

    def work(shift: int) -> bool:
        barrier.wait()
        order = [(number + 25 * shift) % 200 for number in range(200)]
        return all(engine.rerank(*requests[number]).items == serial[number] for number in order)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def with_graph(source: Bundle, graph: bytes, folder: Path, **changed: Any) -> Path:
    """A bundle whose hashes are right, with another graph."""
    (folder / "graph.onnx").write_bytes(graph)
    parts: dict[str, Any] = {"model": source.manifest.model, "features": source.manifest.features, **changed}
    codebook, catalog = source.path / "codebook.bin", source.catalog()
    write_bundle(folder / "bundle", graph=folder / "graph.onnx", codebook=codebook, catalog=catalog, **parts)
    return folder / "bundle"


def test_graph_with_other_outputs_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    source = Bundle.load(make_bundle())
    model = onnx.load(str(source.graph))
    model.graph.output[1].name = model.graph.node[-1].output[0] = "bias"
    expected = "bias is float32 of rank 1, expected absent; prior is absent, expected float32 of rank 1"
    with pytest.raises(BundleError, match=expected):
        Engine(with_graph(source, model.SerializeToString(), tmp_path))


def test_graph_of_another_feature_width_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    source = Bundle.load(make_bundle())
    with pytest.raises(BundleError, match="features has width 3, expected 4"):
        Engine(with_graph(source, source.graph.read_bytes(), tmp_path, features=FeatureSpec(1, ("price",))))


def test_file_that_is_no_graph_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"model\.onnx: onnxruntime cannot load it"):
        Engine(with_graph(Bundle.load(make_bundle()), b"not a graph", tmp_path))


def test_graph_with_data_in_another_file_is_refused(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    source = Bundle.load(make_bundle())
    model = onnx.load(str(source.graph))
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    bundle = with_graph(source, (tmp_path / "model.onnx").read_bytes(), tmp_path)
    weights = (tmp_path / "weights").read_bytes()
    (bundle / "weights").write_bytes(weights)
    monkeypatch.chdir(bundle)
    with pytest.raises(BundleError, match=r"model\.onnx: onnxruntime cannot load it: .*[Ee]xternal"):
        Engine(bundle)


def test_graph_exchanged_after_the_check_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = Bundle.load(shutil.copytree(make_bundle(), tmp_path / "bundle"))
    data = bytearray(bundle.graph.read_bytes())
    data[-1] ^= 1
    bundle.graph.write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.onnx: altered since the export"):
        Engine(bundle)


def test_serving_never_imports_torch() -> None:
    code = "import sys, json, gr2.serving.server, gr2.client; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert not {"torch", "transformers", "gr2.models", "gr2.training"} & set(json.loads(output))

"""Both ways from request bytes to reply bytes, in the C++ core and in Python, give the same bytes and errors."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gr2._core import Call, ParsedRequest
from gr2.errors import Gr2Error, RequestError
from gr2.serving.access.calls import Admission
from gr2.serving.engine import Engine
from gr2.serving.ranking import Timings
from gr2.serving.services.replies import reply
from gr2.v1 import reranker_pb2 as pb

MakeBundle = Callable[..., Path]
KNOWN = [1000 + 7 * item for item in range(300)]
KINDS: tuple[dict[str, Any], ...] = (
    {"width": 2},
    {"id_type": "string"},
    {"normalization": "local", "head": True},
    {"levels": 1, "level_size": 400},
    {"max_history": 1, "max_candidates": 8},
)
EXAMPLES = max(150, settings().max_examples)


class Pair:
    """A bundle behind both ways."""

    def __init__(self, bundle: Path) -> None:
        self.engines = [Engine(bundle, native=native) for native in (True, False)]
        self.admission = Admission(2, 4)
        assert self.engines[0].native is not None

    def answers(self, data: bytes) -> list[str | bytes]:
        """What each says to a request: the reply's bytes without its timings, or the error."""
        return [self._answer(engine, data) for engine in self.engines]

    def _answer(self, engine: Engine, data: bytes) -> str | bytes:
        try:
            out = reply(engine, data, ParsedRequest(data), self.admission, Call(), None)
        except Gr2Error as error:
            return repr(error)
        return canonical(out)


def canonical(out: bytes) -> bytes:
    """A reply without its timings; the bytes before must be what the official serialiser writes."""
    response = pb.RerankResponse.FromString(out)
    assert response.SerializeToString() == out
    for name in Timings.__slots__:
        response.timings.ClearField(name)
    return response.SerializeToString()


@pytest.fixture(
    scope="module", params=[*KINDS, None], ids=lambda kind: "-".join(map(str, (kind or {"split": 1}).values()))
)
def pair(make_bundle: MakeBundle, split: Path, request: pytest.FixtureRequest) -> Pair:
    return Pair(split if request.param is None else make_bundle(**request.param))


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose history is encoded apart; its items are 0 to 2,999."""
    pytest.importorskip("torch")
    from gr2.export.random_bundle import write_random_bundle

    return write_random_bundle(tmp_path_factory.mktemp("split") / "bundle", items=3000, dim=16, width=2, batched=False)


def requests(pair: Pair) -> st.SearchStrategy[bytes]:
    """Requests that are mostly valid for the bundle, and some that break each of its rules."""
    strings, width = pair.engines[0].rules.id_type == "string", pair.engines[0].rules.width
    known = [f"artículo-{item:04d}" for item in range(300)] if strings else KNOWN
    ids = st.one_of(st.sampled_from(known), st.text(max_size=4) if strings else st.integers(-(2**63), 2**63 - 1))
    name = "strings" if strings else "ints"
    wrong = pb.ItemIds(ints=[1], strings=["a"])
    finite = st.floats(-1e6, 1e6, width=32)

    @st.composite
    def build(draw: st.DrawFn) -> bytes:
        candidates = draw(
            st.lists(ids, min_size=draw(st.integers(0, 1)), max_size=30, unique=draw(st.integers(0, 9)) > 0)
        )
        message = pb.RerankRequest(
            request_id=draw(st.one_of(st.just(""), st.text(max_size=8), st.just("é" * 65))),
            history=pb.ItemIds(**{name: draw(st.lists(ids, max_size=40))}),
            candidates=pb.ItemIds(**{name: candidates}),
            top_n=draw(st.integers(0, 40)),
            fallback=draw(st.booleans()),
            priority=draw(st.integers(0, 3)),
        )
        if draw(st.integers(0, 19)) == 0:
            getattr(message, draw(st.sampled_from(["history", "candidates"]))).MergeFrom(wrong)
        number = finite if draw(st.integers(0, 19)) else st.floats(width=32)
        if draw(st.booleans()):
            count = len(candidates) if draw(st.integers(0, 9)) else 3
            message.scores.extend(draw(st.lists(number, min_size=count, max_size=count)))
        if draw(st.booleans()):
            count = len(candidates) * width if draw(st.integers(0, 9)) else 3
            message.features.extend(draw(st.lists(number, min_size=count, max_size=count)))
        return message.SerializeToString()

    return build()


def test_both_ways_give_the_same_bytes_and_errors(pair: Pair) -> None:
    kinds = []

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(requests(pair))
    def check(data: bytes) -> None:
        core, python = pair.answers(data)
        assert core == python
        kinds.append(type(core))

    check()
    assert set(kinds) == {str, bytes}


def message(**fields: Any) -> bytes:
    return pb.RerankRequest(**fields).SerializeToString()


def test_a_long_slate_with_every_field_is_answered_alike(make_bundle: MakeBundle) -> None:
    pair, rng = Pair(make_bundle(width=2)), np.random.default_rng(0)
    candidates = [*KNOWN, *range(700)]
    data = message(
        request_id="r-1",
        history=pb.ItemIds(ints=[*range(900), *KNOWN[:100]]),
        candidates=pb.ItemIds(ints=candidates),
        scores=rng.integers(0, 9, 1000).astype(np.float32),
        features=rng.normal(size=2000).astype(np.float32),
    )
    core, python = pair.answers(data)
    assert isinstance(core, bytes)
    assert core == python


def test_scores_of_every_size_rank_alike(make_bundle: MakeBundle) -> None:
    pair, rng = Pair(make_bundle()), np.random.default_rng(0)
    for count in (1, 2, 17, 64, 257):
        scores = rng.normal(size=count).astype(np.float32)
        scores[: count // 3] = 0.0
        scores[: count // 6] = -0.0
        core, python = pair.answers(message(candidates=pb.ItemIds(ints=KNOWN[:count]), scores=scores))
        assert core == python


def test_a_model_without_finite_scores_fails_alike(make_bundle: MakeBundle) -> None:
    pair = Pair(make_bundle(width=2))
    data = message(candidates=pb.ItemIds(ints=KNOWN[:3]), features=[3e38, -3e38] * 3)
    core, python = pair.answers(data)
    assert core == python
    assert "features: too large" in str(core)


def test_many_threads_get_what_one_gets(make_bundle: MakeBundle) -> None:
    pair, rng = Pair(make_bundle()), np.random.default_rng(0)
    pair.admission = Admission(3, 64)
    data = [
        message(history=pb.ItemIds(ints=rng.choice(KNOWN, 5)), candidates=pb.ItemIds(ints=rng.permutation(KNOWN)[:20]))
        for _ in range(64)
    ]
    expected = [pair.answers(each)[1] for each in data]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda each: pair.answers(each)[0], data))
    assert found == expected


def test_a_request_that_takes_too_much_memory_is_refused_alike(make_bundle: MakeBundle) -> None:
    from gr2.serving import engine
    from gr2.serving.models import native_model

    with pytest.MonkeyPatch.context() as patch:
        for module in (engine, native_model):
            patch.setattr(module, "MOST_OF_REQUEST", 100_000)
        pair = Pair(make_bundle(items=299))
    core, python = pair.answers(message(candidates=pb.ItemIds(ints=KNOWN[:200])))
    assert core == python
    assert "MB are given to a request" in str(core)
    assert isinstance(pair.answers(message(candidates=pb.ItemIds(ints=KNOWN[:2])))[0], bytes)


def test_a_history_takes_the_memory_of_its_tokens_alike(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from gr2.export.random_bundle import write_random_bundle
    from gr2.serving import engine
    from gr2.serving.models import native_model

    pairs = {}
    for encoding in ("item", "code"):
        path = write_random_bundle(tmp_path / encoding, items=300, dim=16, layers=2, batched=False, encoding=encoding)
        with pytest.MonkeyPatch.context() as patch:
            for module in (engine, native_model):
                patch.setattr(module, "MOST_OF_REQUEST", 1_000_000)
            pairs[encoding] = Pair(path)
    data = message(history=pb.ItemIds(ints=range(50)), candidates=pb.ItemIds(ints=range(100, 105)))
    answers = {encoding: pair.answers(data) for encoding, pair in pairs.items()}
    assert all(core == python for core, python in answers.values())
    assert isinstance(answers["item"][0], bytes)
    assert "MB are given to a request" in str(answers["code"][0])


def test_bytes_that_are_no_request_are_an_error(make_bundle: MakeBundle) -> None:
    for answer in Pair(make_bundle()).answers(b"\xff"):
        assert answer == repr(RequestError("request", "the bytes are not a gr2.v1.RerankRequest"))


def test_an_encoded_history_is_kept_and_changes_nothing(split: Path) -> None:
    pair = Pair(split)
    native = pair.engines[0].native
    assert native is not None
    assert native.splits
    data = message(history=pb.ItemIds(ints=range(9)), candidates=pb.ItemIds(ints=range(50, 90)))
    first = pair.answers(data)
    before = native.counts()
    assert pair.answers(data) == first
    assert native.counts()["hits"] == before["hits"] + 1
    assert native.counts()["misses"] == before["misses"]
    native.close()
    assert native.counts()["entries"] == 0
    assert first[0] == first[1]

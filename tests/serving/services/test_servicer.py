"""The servicer: bytes in, bytes out, the same answers as the engine; and the table from exception to status."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from gr2.errors import OverloadError, RequestError, UnservedError
from gr2.serving.access.calls import Admission, Patience
from gr2.serving.access.load import LoadReport
from gr2.serving.bundles.repository import Repository
from gr2.serving.engine import Engine
from gr2.serving.services.servicer import SERVICE, STATUS, Servicer
from gr2.v1 import reranker_pb2 as pb

MakeBundle = Callable[..., Path]
KNOWN = [1000 + 7 * item for item in range(300)]


def answering(bundle: Path, *, native: bool = True) -> Servicer:
    repository = Repository(bundle, lambda loaded: Engine(loaded, native=native))
    return Servicer(repository, Admission(1, 0), Patience(), LoadReport(1))


@pytest.fixture(scope="module", params=[True, False], ids=["core", "python"])
def servicer(make_bundle: MakeBundle, request: pytest.FixtureRequest) -> Servicer:
    return answering(make_bundle(width=2), native=request.param)


def call(servicer: Servicer, **fields: Any) -> pb.RerankResponse:
    return pb.RerankResponse.FromString(servicer.answer(pb.RerankRequest(**fields).SerializeToString()))


def refusal(servicer: Servicer, **fields: Any) -> str:
    with pytest.raises(RequestError) as caught:
        call(servicer, **fields)
    return str(caught.value)


def test_answer_equals_the_engines(servicer: Servicer) -> None:
    rng = np.random.default_rng(0)
    candidates, scores = [*KNOWN[:20], 1, 2], rng.normal(size=22).astype(np.float32)
    features = rng.normal(size=(22, 2)).astype(np.float32)
    with servicer.repository.lease() as engine:
        expected = engine.rerank([5, *KNOWN[:3]], candidates, scores=scores, features=features, top_n=21)
    response = call(
        servicer,
        request_id="r-7",
        history=pb.ItemIds(ints=[5, *KNOWN[:3]]),
        candidates=pb.ItemIds(ints=candidates),
        scores=scores.tolist(),
        features=features.ravel().tolist(),
        top_n=21,
    )
    assert [(item.index, item.int_id, item.score, item.status) for item in response.ranking] == [
        (item.index, item.item_id, item.score, item.status) for item in expected.items
    ]
    assert {item.WhichOneof("item_id") for item in response.ranking} == {"int_id"}
    assert response.ranking[20].score == 0
    assert response.ranking[20].status == pb.CANDIDATE_STATUS_UNKNOWN_ITEM
    assert (response.request_id, response.bundle_version) == ("r-7", expected.bundle_version)
    assert response.unknown_history == 1
    timings = response.timings
    phases = [timings.parse_ns, timings.lookup_ns, timings.trie_ns, timings.model_ns, timings.rank_ns]
    assert min(phases) > 0
    assert sum(phases) <= timings.total_ns


def test_string_ids_come_back_as_strings(make_bundle: MakeBundle) -> None:
    servicer = answering(make_bundle("string"))
    ids = ["artículo-0001", "ohne", "artículo-0002"]
    response = call(servicer, candidates=pb.ItemIds(strings=ids))
    assert sorted(item.string_id for item in response.ranking) == sorted(ids)
    assert response.ranking[2].string_id == "ohne"


def test_extreme_ids_travel_unchanged(servicer: Servicer) -> None:
    ids = [-(2**63), -1, 0, 2**63 - 1]
    assert [item.int_id for item in call(servicer, candidates=pb.ItemIds(ints=ids)).ranking] == ids


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "candidates: at least one is needed"),
        ({"candidates": pb.ItemIds(ints=[1, 1])}, "candidates: must be distinct; 1 at positions 0, 1"),
        ({"candidates": pb.ItemIds(ints=[1], strings=["a"])}, "candidates: fill ints or strings"),
        ({"candidates": pb.ItemIds(strings=["a"])}, "candidates: this catalogue's item IDs are int64"),
        ({"candidates": pb.ItemIds(ints=range(1025))}, "candidates: at most 1024 items, got 1025"),
        ({"history": pb.ItemIds(ints=range(1025))}, "history: at most 1024 items, got 1025"),
        ({"scores": [1, 2]}, "scores: none or one a candidate (1), got 2"),
        ({"scores": [float("nan")]}, "scores: must be finite"),
        ({"features": [1, 2, 3]}, "features: this bundle's feature width is 2: expected 2 values"),
        ({"features": [1, float("inf")]}, "features: must be finite"),
        ({"request_id": "x" * 129}, "request_id: at most 128 bytes, got 129"),
        ({"bundle": "other"}, "bundle: no bundle 'other' here; there are default"),
    ],
)
def test_broken_rule_names_the_field(servicer: Servicer, fields: dict[str, Any], message: str) -> None:
    if fields and "candidates" not in fields:
        fields = {**fields, "candidates": pb.ItemIds(ints=[1007])}
    assert refusal(servicer, **fields).startswith(message)


@pytest.mark.parametrize("data", [b"\x08", b"\xff" * 40, b"\x0a\x02\xff\xfe", b"\x1a\x05\x12\x03\xff\xff\xff"])
def test_bytes_that_are_no_request_are_a_request_error(servicer: Servicer, data: bytes) -> None:
    with pytest.raises(RequestError, match="request: the bytes are not a"):
        servicer.answer(data)


def test_field_of_a_newer_client_is_ignored(servicer: Servicer) -> None:
    data = pb.RerankRequest(candidates=pb.ItemIds(ints=[1007])).SerializeToString() + b"\xf8\x07\x01"
    assert len(pb.RerankResponse.FromString(servicer.answer(data)).ranking) == 1


def test_every_error_of_a_caller_has_a_status() -> None:
    assert dict(STATUS) == {
        RequestError: grpc.StatusCode.INVALID_ARGUMENT,
        OverloadError: grpc.StatusCode.RESOURCE_EXHAUSTED,
        UnservedError: grpc.StatusCode.UNAVAILABLE,
        CancelledError: grpc.StatusCode.DEADLINE_EXCEEDED,
    }


def test_service_has_the_documented_name() -> None:
    assert SERVICE == "gr2.v1.Reranker"

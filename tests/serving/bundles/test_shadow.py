"""A candidate bundle beside the one that answers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gr2.client import Client
from gr2.errors import ConfigError
from gr2.serving.bundles import shadow as shadow_module
from gr2.serving.bundles.repository import Repository
from gr2.serving.bundles.shadow import Shadow, ShadowCounts, kendall_tau
from gr2.serving.engine import Engine
from gr2.serving.server import Server
from gr2.v1 import reranker_pb2 as pb

MakeBundle = Callable[..., Path]
KNOWN = [1000 + 7 * item for item in range(300)]


@pytest.fixture
def root(make_bundle: MakeBundle, tmp_path: Path) -> Path:
    bundles = {"live": {}, "same": {}, "next": {"normalization": "local"}, "texts": {"id_type": "string"}}
    for name, options in bundles.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "1").symlink_to(make_bundle(**options))
    return tmp_path


def pair(engine: Engine, history: list[int], candidates: list[int], **fields: Any) -> tuple[bytes, bytes]:
    """A request and the reply to it."""
    top_n = fields.pop("top_n", 0)
    request = pb.RerankRequest(
        history=pb.ItemIds(ints=history), candidates=pb.ItemIds(ints=candidates), top_n=top_n, **fields
    )
    ranking = engine.rerank(history, candidates, top_n=top_n)
    reply = pb.RerankResponse(ranking=[pb.RankedItem(index=item.index) for item in ranking.items])
    return request.SerializeToString(), reply.SerializeToString()


def settled(shadow: Shadow) -> ShadowCounts:
    shadow.close()
    return shadow.counts()


@pytest.mark.parametrize("seed", range(5))
def test_tau_is_the_share_of_pairs_that_agree_less_those_that_do_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    order, other = rng.permutation(12)[: rng.integers(2, 13)].tolist(), rng.permutation(12).tolist()
    agree = sum(
        1 if other.index(first) < other.index(second) else -1
        for place, first in enumerate(order)
        for second in order[place + 1 :]
    )
    assert kendall_tau(order, other) == pytest.approx(agree / (len(order) * (len(order) - 1) / 2))


def test_tau_of_equal_reversed_and_single_orders() -> None:
    assert [kendall_tau([2, 0, 1], [2, 0, 1]), kendall_tau([0, 1, 2], [2, 1, 0]), kendall_tau([4], [4])] == [1, -1, 1]


def test_equal_bundle_agrees_and_another_is_measured(root: Path) -> None:
    repository = Repository(root, default="live")
    same, other = Shadow(repository, "same", 1.0), Shadow(repository, "next", 1.0)
    rng = np.random.default_rng(0)
    expected, disagreed = 0.0, 0
    with repository.lease() as live, repository.lease("next") as candidate:
        for _ in range(30):
            drawn = rng.choice(KNOWN, size=25, replace=False).tolist()
            found = pair(live, drawn[:5], drawn[5:])
            orders = [[item.index for item in each.rerank(drawn[:5], drawn[5:]).items] for each in (live, candidate)]
            expected += kendall_tau(*orders)
            disagreed += orders[0][0] != orders[1][0]
            same.offer(*found)
            other.offer(*found)
    assert settled(same) == ShadowCounts(compared=30, tau=30.0)
    counts = settled(other)
    assert (counts.compared, counts.disagreed, counts.tau) == (30, disagreed, pytest.approx(expected))
    assert disagreed > 0


def test_shortened_answer_is_compared_over_what_it_lists(root: Path) -> None:
    repository = Repository(root, default="live")
    shadow = Shadow(repository, "same", 1.0)
    with repository.lease() as live:
        shadow.offer(*pair(live, [], KNOWN[:20], top_n=3))
    assert settled(shadow) == ShadowCounts(compared=1, tau=1.0)


def test_requests_of_other_bundles_and_fallbacks_are_left_out(root: Path) -> None:
    repository = Repository(root, default="live")
    shadow = Shadow(repository, "same", 1.0)
    with repository.lease() as live:
        shadow.offer(*pair(live, [], KNOWN[:9], bundle="next"))
        request, reply = pair(live, [], KNOWN[:9], bundle="live")
        shadow.offer(request, reply + pb.RerankResponse(fallback=True).SerializeToString())
        shadow.offer(request, reply)
    assert settled(shadow).compared == 1


def test_failures_of_the_candidate_are_counted_and_logged_once_without_the_request(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository = Repository(root, default="live")
    shadow = Shadow(repository, "texts", 1.0)
    with repository.lease() as live:
        for _ in range(3):
            shadow.offer(*pair(live, [], KNOWN[:9]))
    assert settled(shadow) == ShadowCounts(failed=3)
    assert [record.getMessage() for record in caplog.records] == ["shadow texts: a request failed: RequestError"]


def test_what_waits_is_bounded_and_the_rest_is_dropped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository(root, default="live")
    with repository.lease() as live:
        found = pair(live, [], KNOWN[:9])
    begun, free, compare = threading.Event(), threading.Event(), Shadow._compare

    def held(shadow: Shadow, *arguments: bytes) -> None:
        begun.set()
        assert free.wait(30)
        compare(shadow, *arguments)

    monkeypatch.setattr(Shadow, "_compare", held)
    monkeypatch.setattr(shadow_module, "WAITING", 4)
    shadow = Shadow(repository, "same", 1.0)
    shadow.offer(*found)
    assert begun.wait(30)
    for _ in range(10):
        shadow.offer(*found)
    assert shadow.counts().dropped == 6
    free.set()
    deadline = time.monotonic() + 20
    while shadow.counts().compared < 5:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert settled(shadow) == ShadowCounts(compared=5, tau=5.0, dropped=6)


def test_end_does_not_wait_for_a_comparison_that_hangs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository(root, default="live")
    with repository.lease() as live:
        found = pair(live, [], KNOWN[:9])
    free = threading.Event()
    monkeypatch.setattr(Shadow, "_compare", lambda *_: free.wait(30))
    monkeypatch.setattr(shadow_module, "WAITING", 2)
    monkeypatch.setattr(shadow_module, "LAST", 0.05)
    shadow = Shadow(repository, "same", 1.0)
    for _ in range(9):
        shadow.offer(*found)
    shadow.close()
    assert shadow.counts().dropped >= 6
    free.set()


@pytest.mark.parametrize("name", ["live", "nowhere"])
def test_shadow_must_be_another_bundle(root: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="shadow is another bundle than the default one"):
        Server(root, port=0, default="live", shadow=name)


def test_server_answers_as_without_and_tells_the_disagreement(root: Path) -> None:
    server = Server(root, port=0, default="live", shadow="next", shadow_share=1.0)
    server.start()
    with Client(server.address) as client:
        ranking = client.rerank(KNOWN[:5], KNOWN[5:30], timeout=10)
    assert ranking.items == server.engine.rerank(KNOWN[:5], KNOWN[5:30]).items
    deadline = time.monotonic() + 20
    while not (shadow := server._management.info().shadow).compared:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (shadow.bundle, shadow.share, shadow.compared, shadow.failed) == ("next", 1.0, 1, 0)
    assert -1 <= shadow.kendall_tau <= 1
    assert 'gr2_shadow_requests_total{bundle="next",outcome="compared"} 1' in server.metrics.text()
    tid = next(thread.native_id for thread in threading.enumerate() if thread.name == "gr2-shadow")
    assert os.getpriority(os.PRIO_PROCESS, tid or 0) == 10
    server.stop(5)

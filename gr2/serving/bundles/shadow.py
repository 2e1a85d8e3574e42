"""A candidate bundle beside the one that answers: a share of the traffic is scored by both, and the orders compared.

The answer is there before the candidate sees the request, and does not wait for it. Comparisons run one by one in a
thread of low priority; beyond a bound they are left out, and counted.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gr2.errors import ConfigError
from gr2.serving.bundles.repository import Repository, yield_to_requests
from gr2.serving.observing.exposition import Family
from gr2.v1 import reranker_pb2

__all__ = ["Shadow", "ShadowCounts", "kendall_tau"]

logger = logging.getLogger(__name__)

WAITING = 64
LAST = 5.0  # seconds

Pair = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class ShadowCounts:
    """`compared` answers, `disagreed` of them with another first item; `tau` is the sum of their Kendall's taus.

    `dropped` were taken and left out since too many waited; `failed` in the candidate.
    """

    compared: int = 0
    disagreed: int = 0
    tau: float = 0.0
    dropped: int = 0
    failed: int = 0


class Shadow:
    """Compares a `share` of what the default bundle answers with the order of `bundle`, another of the repository."""

    def __init__(self, repository: Repository, bundle: str, share: float) -> None:
        """Start the thread. Raises ConfigError if there is no such bundle, or if it is the default one."""
        names = [status.name for status in repository.status()]
        if bundle not in names or bundle == repository.default:
            raise ConfigError(f"shadow is another bundle than the default one, of {', '.join(names)}; got {bundle!r}")
        self.bundle, self.share = bundle, share
        self._repository = repository
        self._waiting: queue.Queue[Pair | None] = queue.Queue(WAITING)
        self._lock = threading.Lock()
        self._compared = self._disagreed = self._dropped = self._failed = 0
        self._tau = 0.0
        self._thread = threading.Thread(target=self._work, name="gr2-shadow", daemon=True)
        self._thread.start()

    def offer(self, request: bytes, reply: bytes) -> None:
        """Perhaps compare an answer; takes a microsecond and never waits."""
        if random.random() >= self.share:  # noqa: S311
            return
        try:
            self._waiting.put_nowait((request, reply))
        except queue.Full:
            with self._lock:
                self._dropped += 1

    def counts(self) -> ShadowCounts:
        """What has been compared so far."""
        with self._lock:
            return ShadowCounts(self._compared, self._disagreed, self._tau, self._dropped, self._failed)

    def families(self) -> Iterable[Family]:
        """The same as metrics."""
        counts, name = self.counts(), self.bundle
        outcomes = Family("gr2_shadow_requests_total", "counter", "Answers taken for comparison, by outcome.")
        for outcome in ("compared", "dropped", "failed"):
            outcomes.add(getattr(counts, outcome), bundle=name, outcome=outcome)
        other = Family("gr2_shadow_top1_disagreements_total", "counter", "Compared answers with another first item.")
        tau = Family("gr2_shadow_kendall_tau_sum", "counter", "Sum of Kendall's tau over the compared answers.")
        return (outcomes, other.add(counts.disagreed, bundle=name), tau.add(counts.tau, bundle=name))

    def close(self) -> None:
        """Compare what waits, as far as that takes LAST seconds, and end the thread."""
        while True:
            try:
                self._waiting.put_nowait(None)
                break
            except queue.Full:
                self._drop()
        self._thread.join(LAST)

    def _drop(self) -> None:
        """Leave out the one that waits longest."""
        with contextlib.suppress(queue.Empty):
            self._waiting.get_nowait()
            with self._lock:
                self._dropped += 1

    def _work(self) -> None:
        yield_to_requests()
        well = True
        while (pair := self._waiting.get()) is not None:
            try:
                self._compare(*pair)
                well = True
            except Exception as error:
                with self._lock:
                    self._failed += 1
                # What an error says may quote the request.
                if well:
                    logger.warning("shadow %s: a request failed: %s", self.bundle, type(error).__name__)
                well = False

    def _compare(self, request: bytes, reply: bytes) -> None:
        asked, answered = reranker_pb2.RerankRequest.FromString(request), reranker_pb2.RerankResponse.FromString(reply)
        if asked.bundle not in ("", self._repository.default) or answered.fallback:
            return
        with self._repository.lease(self.bundle) as engine:
            ranking = engine.rerank(
                asked.history.ints[:] or asked.history.strings[:],
                asked.candidates.ints[:] or asked.candidates.strings[:],
                scores=asked.scores[:],
                features=asked.features[:],
            )
        order, other = [item.index for item in answered.ranking], [item.index for item in ranking.items]
        tau = kendall_tau(order, other)
        with self._lock:
            self._compared += 1
            self._disagreed += order[0] != other[0]
            self._tau += tau


def kendall_tau(order: Sequence[int], other: Sequence[int]) -> float:
    """Kendall's tau of two orders over what `order` holds, 1 for equal and -1 for reversed; of one item, 1.

    `other` may hold more. Pairs in the same order, less those in another, over all pairs.
    """
    count = len(order)
    if count < 2:
        return 1.0
    place = {item: at for at, item in enumerate(other)}
    places = np.array([place[item] for item in order])
    swapped = np.count_nonzero(np.triu(places[:, None] > places[None, :], 1))
    return 1.0 - 4.0 * swapped / (count * (count - 1))

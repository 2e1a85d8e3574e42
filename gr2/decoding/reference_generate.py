"""The NumPy reference of generation and sampling: what CandidateDecoder and CandidateTrie.sample must compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Generated", "reference_exponential", "reference_generate", "reference_sample"]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
Values = NDArray[np.float64]
Logits = Callable[[tuple[int, ...]], NDArray[np.float32]]


@dataclass
class Generated:
    """`order` are the emitted candidates; codes, forced and log-probabilities are by code since the start.

    `decisions` holds the codes to append before each decision and those it could choose; `stopped` is True if all of
    them were masked.
    """

    order: list[int] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    local: list[float] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    decisions: list[tuple[list[int], list[int]]] = field(default_factory=list)
    stopped: bool = False

    def ranking(self, known: NDArray[np.bool_], scores: NDArray[np.float32] | None = None) -> list[int]:
        """All candidates: the emitted, the other known ones by `scores`, the unknown; ties in incoming order."""
        left = [candidate for candidate in np.flatnonzero(known).tolist() if candidate not in self.order]
        if scores is not None:
            left.sort(key=lambda candidate: -scores[candidate])
        return [*self.order, *left, *np.flatnonzero(~known).tolist()]


def mix64(x: Any) -> Any:
    """The bijection of csrc/core/hash.h."""
    for _ in range(2):
        x = (x ^ (x >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return x ^ (x >> np.uint64(32))


def reference_log(x: Values) -> Values:
    """log(x) from exact operations in the order of csrc/core/sampling.h."""
    m, exponent = np.frexp(x)  # 1/2 <= m < 1
    small = 4.0 * m * m < 2.0
    m, exponent = np.where(small, 2.0 * m, m), exponent - small
    s = (m - 1.0) / (m + 1.0)
    total = np.zeros_like(s)
    for odd in range(23, 0, -2):
        total = total * (s * s) + 1.0 / odd
    return 2.0 * s * total + exponent * 0.693147180559945309417


def reference_exponential(seed: int, stream: int, index: NDArray[np.integer]) -> Values:
    """The draws of Exp(1) that belong to the numbers, one for each of `index`."""
    with np.errstate(over="ignore"):
        state = mix64(mix64(np.uint64(seed) + GOLDEN) + np.uint64(stream) + GOLDEN)
        bits = mix64(state + GOLDEN * index.astype(np.uint64))
    return -reference_log(((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)


def log_softmax(logits: NDArray[np.float64], code: int, over: list[int] | slice) -> float:
    """The log-probability of `code` among the codes `over`; -inf if it is masked."""
    return float(logits[code] - np.logaddexp.reduce(logits[over])) if logits[code] > -np.inf else -np.inf


def reference_generate(
    codes: NDArray[np.uint16],
    known: NDArray[np.bool_],
    logits_of: Logits,
    *,
    mode: str = "greedy",
    seed: int = 0,
    temperature: float = 1.0,
    top_n: int | None = None,
) -> Generated:
    """What CandidateDecoder emits of the known rows of `codes` (K, L).

    `logits_of` is the model: (V,) logits of the next code, given all codes so far. The log-probabilities are those of
    logits / temperature, `local` over the codes allowed and `raw` over the level; a forced code has both, too.
    """
    result, fresh, decisions = Generated(), 0, 0
    remaining = {candidate: tuple(codes[candidate].tolist()) for candidate in np.flatnonzero(known).tolist()}
    wanted = len(remaining) if top_n is None else min(top_n, len(remaining))
    while len(result.order) < wanted:
        inside = dict(remaining)
        for depth in range(codes.shape[1]):
            first: dict[int, int] = {}  # the lowest candidate of each code
            for candidate, path in inside.items():
                first.setdefault(path[depth], candidate)
            allowed = sorted(first)
            logits = logits_of(tuple(result.codes)).astype(np.float64)
            code = allowed[0]
            if len(allowed) > 1:
                result.decisions.append((result.codes[fresh:], allowed))
                keys = logits[allowed]
                if np.all(np.isneginf(keys)):
                    result.stopped = True
                    return result
                if mode == "sample":
                    keys = keys / temperature - reference_log(reference_exponential(seed, decisions, np.array(allowed)))
                code = min((allowed[i] for i in np.flatnonzero(keys == keys.max())), key=lambda each: first[each])
                fresh, decisions = len(result.codes), decisions + 1
            scaled = logits / temperature
            result.codes.append(code)
            result.forced.append(len(allowed) == 1)
            result.local.append(0.0 if len(allowed) == 1 else log_softmax(scaled, code, allowed))
            result.raw.append(log_softmax(scaled, code, slice(None)))
            inside = {candidate: path for candidate, path in inside.items() if path[depth] == code}
        result.order.append(min(inside))
        del remaining[min(inside)]
    result.decisions.append((result.codes[fresh:], []))
    return result


def reference_sample(
    codes: NDArray[np.uint16],
    known: NDArray[np.bool_],
    scores: NDArray[np.float32],
    *,
    seed: int,
    temperature: float = 1.0,
) -> tuple[list[int], NDArray[np.float64]]:
    """Order and log-probabilities by candidate, as CandidateTrie.sample draws them from `scores` (K,).

    Each path is a queue of its candidates by score; the next arrival of a path takes Exp(1) / exp(score / temperature)
    of its head. Arrivals in order of time are draws without replacement, by the heads' softmax.
    """
    queues: dict[tuple[int, ...], list[int]] = {}
    for candidate in sorted(np.flatnonzero(known & (scores > -np.inf)).tolist(), key=lambda each: -scores[each]):
        queues.setdefault(tuple(codes[candidate].tolist()), []).append(candidate)
    rate = scores.astype(np.float64) / temperature
    noise = reference_log(reference_exponential(seed, 0, np.arange(len(codes))))
    times = {}
    for queue in queues.values():
        time = -np.inf
        for candidate in queue:
            time = np.logaddexp(time, noise[candidate] - rate[candidate])
            times[candidate] = float(time)
    drawn = sorted(times, key=lambda each: times[each])
    log_probs = np.full(len(codes), -np.inf)
    for candidate in drawn:
        heads = [queue[0] for queue in queues.values() if queue]
        log_probs[candidate] = rate[candidate] - np.logaddexp.reduce(rate[heads])
        queues[tuple(codes[candidate].tolist())].remove(candidate)
    return [*drawn, *np.flatnonzero(np.isneginf(log_probs)).tolist()], log_probs

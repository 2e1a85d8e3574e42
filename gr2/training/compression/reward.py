"""The reward of a shortened context (technical report, section 5.1).

With a judge's verdict, s whether the case is solvable, p what is preserved, q the ranking quality, and |c| and |o| the
tokens of the context and of the history,

    r_judge = 0.2 p + 0.8 q where s, else 0.8 p + 0.2 q
    r_comp  = max(0, 1 - |c| / |o|)
    r       = (alpha r_comp + (1 - alpha) r_judge) lambda^[the context ends in dots that the history lacks]

s belongs to the case and not to the context, so that no context earns by making a case unsolvable.
"""

from __future__ import annotations

from collections.abc import Sequence

from gr2.prompts.verdict import Verdict

__all__ = ["REFUSED", "context_reward", "judged", "shortness", "trails_off"]

REFUSED = 0.0  # the least that a context can earn
HEAVY, LIGHT = 0.8, 0.2
DOTS = ("...", "\u2026")


def judged(verdict: Verdict) -> float:
    """r_judge, from 0 to 1."""
    heavy, light = (
        (verdict.quality, verdict.preservation) if verdict.solvable else (verdict.preservation, verdict.quality)
    )
    return HEAVY * heavy + LIGHT * light


def shortness(tokens: int, original: int) -> float:
    """r_comp: 1 for nothing, 0 for what is no shorter than the original. Raises ValueError without an original."""
    if original < 1:
        raise ValueError(f"a history of at least one token expected, got {original}")
    return max(0.0, 1 - tokens / original)


def trails_off(context: Sequence[str], history: Sequence[str]) -> bool:
    """Whether the context has more lines that end in dots than the history: text given up instead of shortened."""
    return _dots(context) > _dots(history)


def context_reward(
    verdict: Verdict, tokens: int, original: int, *, alpha: float, penalty: float = 1.0, trailing: bool = False
) -> float:
    """r; `penalty` is lambda, by which what is `trailing` off is multiplied."""
    reward = alpha * shortness(tokens, original) + (1 - alpha) * judged(verdict)
    return reward * penalty if trailing else reward


def _dots(lines: Sequence[str]) -> int:
    return sum(line.rstrip().endswith(DOTS) for line in lines)

"""Which of the exported variants are served, by default or at all: only those that rank as the student does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from gr2.export.agreement import NOT_FINITE, Agreement
from gr2.graphs import GraphVariant

__all__ = ["INT8_PAYS", "Gate", "choose", "choose_batch", "judge"]

# Below this width of the student, rounding costs as much time as products of fewer bits save; from it on int8 is faster
# with every generation of instructions, and ranks as fp32 does (student.graphs and student.int8 in docs/results.md).
INT8_PAYS = 64


@dataclass(frozen=True)
class Gate:
    """What a variant must reach, on real and on random requests: the share of first candidates that are the student's,
    the mean of Kendall's tau; and of the student's N@5 on labelled requests it may lose `max_lost`.
    """

    min_top1: float
    min_tau: float
    max_lost: float

    def faults(self, real: Agreement, random: Agreement) -> list[str]:
        """Where a variant is beyond the gate, in words."""
        faults = []
        for name, figures in (("real", real), ("random", random)):
            if figures.max_abs_difference >= NOT_FINITE:
                faults.append(f"scores on {name} requests are not finite")
            if figures.requests and figures.top1 < self.min_top1:
                faults.append(f"top-1 agreement {figures.top1:.4f} on {name} requests, {self.min_top1} wanted")
            if figures.requests and figures.tau < self.min_tau:
                faults.append(f"Kendall's tau {figures.tau:.4f} on {name} requests, {self.min_tau} wanted")
        if real.lost > self.max_lost:
            faults.append(f"loses {real.lost:.2%} of the student's N@5, at most {self.max_lost:.2%} allowed")
        return faults


def judge(gate: Gate, roles: tuple[str, ...], figures: Mapping[str, tuple[Agreement, Agreement]]) -> GraphVariant:
    """The variant as the manifest describes it; `figures` are those of each way to run it, on real and random requests.

    One that is beyond the gate has no roles: the bundle does not hold it.
    """
    faults = [f"{way}: {fault}" for way, pair in figures.items() for fault in gate.faults(*pair)]
    parity = {
        way: {name: asdict(part) for name, part in zip(("real", "random"), pair, strict=True)}
        for way, pair in figures.items()
    }
    verdict = f"refused: {'; '.join(faults)}" if faults else "within the gate"
    return GraphVariant(() if faults else roles, parity, verdict)


def choose(wanted: str, variants: Mapping[str, GraphVariant], dim: int) -> tuple[str, str]:
    """The variant that a CPU serves, and why; `wanted` is its name or "auto"."""
    if wanted in {"fp32", "auto"} and (wanted == "fp32" or dim < INT8_PAYS):
        reason = "as configured" if wanted == "fp32" else f"int8 is no faster at dim {dim}, it is from {INT8_PAYS} on"
        return "fp32", f"fp32: {reason}"
    name = "int8" if wanted == "auto" else wanted
    if name not in variants:
        return "fp32", f"fp32: {name} was not exported"
    variant = variants[name]
    if not variant.split:
        return "fp32", f"fp32: {name} was {variant.verdict}"
    real = variant.parity["core" if variant.native else "split"]["real"]
    return name, (
        f"{name}: the student's first candidate is first on {real['top1']:.2%} of {real['requests']} real requests, "
        f"Kendall's tau {real['tau']:.4f}, N@5 {real['ndcg']:.4f} where the student has {real['student_ndcg']:.4f}"
    )


def choose_batch(wanted: str, variants: Mapping[str, GraphVariant]) -> tuple[str, str]:
    """The variant that a GPU serves, and what is said of it if another than fp32 was wanted."""
    if wanted == "fp32":
        return wanted, ""
    variant = variants[wanted]
    if "batch" not in variant.roles:
        return "fp32", f". On a GPU fp32: {wanted} was {variant.verdict}"
    real = variant.parity["batch"]["real"]
    return wanted, f". On a GPU {wanted}, as configured: Kendall's tau {real['tau']:.4f}"

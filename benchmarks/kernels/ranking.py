"""Scores and generation of batches of requests by the kernels, beside the same in PyTorch operations."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.kernels.check import slate
from benchmarks.kernels.csr import generate_by_operations
from benchmarks.kernels.plan import LEVELS, Plan
from benchmarks.kernels.retrieval import COMPARED
from benchmarks.kernels.timing import Timer
from benchmarks.results import Figure
from gr2.kernels import CandidateTables

__all__ = ["generation", "scoring"]


def scoring(plan: Plan, rate: float) -> dict[str, Any]:
    """Scores of batches of requests, beside the same in PyTorch operations."""
    rng, rows, device, timer = np.random.default_rng(0), [], plan.device, Timer(plan.device)
    decoder, candidates = plan.decoder(), plan.candidates
    for requests, size, dtype in itertools.product(plan.requests, plan.level_sizes, (torch.float32, torch.bfloat16)):
        codes, _ = slate(rng, requests, candidates, LEVELS, size)
        tables = CandidateTables.build(codes, np.ones((requests, candidates), np.bool_), size)
        batch = decoder.candidates(tables)
        logits = torch.randn((requests, tables.nodes, size), device=device).to(dtype)
        prior = torch.randn((requests, candidates), device=device)
        nodes, paths = (on_device(each, device).transpose(1, 2) for each in (tables.path_nodes, tables.path_codes))
        positions = on_device(tables.positions, device)

        def by_operations(
            logits: torch.Tensor = logits,
            prior: torch.Tensor = prior,
            nodes: torch.Tensor = nodes,
            paths: torch.Tensor = paths,
            positions: torch.Tensor = positions,
            requests: int = requests,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            likely = torch.log_softmax(logits.float(), dim=-1)
            which = torch.arange(requests, device=device)[:, None, None]
            scores = torch.empty_like(prior).scatter_(1, positions, likely[which, nodes, paths].sum(-1)) + prior
            return scores.argsort(dim=1, descending=True, stable=True), scores

        _, scores = batch.score(logits, prior)
        torch.testing.assert_close(scores, by_operations()[1], rtol=1e-4, atol=1e-4)

        def ours(batch: Any = batch, logits: torch.Tensor = logits, prior: torch.Tensor = prior) -> None:
            batch.score(logits, prior)

        replay = timer.graphed(ours)
        scores.fill_(torch.nan)
        replay()
        torch.testing.assert_close(scores, by_operations()[1], rtol=1e-4, atol=1e-4)
        times = [timer.seconds(each) for each in (replay, ours, by_operations, timer.graphed(by_operations))]
        floor = logits.nbytes / rate
        name = str(dtype).removeprefix("torch.")
        shown = [f"{1e6 * each:.1f}" for each in times]
        row = [requests, size, name, *shown, f"{times[2] / times[0]:.1f}", f"{1e6 * floor:.2f}"]
        rows.append([*row, f"{times[0] / floor:.1f}"])
    columns = ["requests", "V", "logits", "ours us", "ours from Python us", "PyTorch eager us", "PyTorch graph us"]
    return {
        "title": f"trie_score of {candidates} candidates a request; x: {COMPARED}",
        "columns": [*columns, "x eager", "floor us", "ours / floor"],
        "rows": rows,
    }


def on_device(values: NDArray[Any], device: str) -> torch.Tensor:
    """The table's numbers as PyTorch indexes with."""
    return torch.from_numpy(values.astype(np.int64)).to(device)


def generation(plan: Plan) -> tuple[list[Figure], dict[str, Any]]:
    """A whole permutation of each request's candidates, beside the same loop of PyTorch operations."""
    requests, candidates, size = plan.requests[-1], plan.candidates, plan.level_sizes[0]
    device, timer = plan.device, Timer(plan.device)
    rng = np.random.default_rng(0)
    codes, _ = slate(rng, requests, candidates, LEVELS, size)
    tables = CandidateTables.build(codes, np.ones((requests, candidates), np.bool_), size)
    table = 2 * torch.randn((requests, candidates * LEVELS, size), device=device)
    ours = plan.decoder().candidates(tables).generate()
    rows = []
    while bool((ours.node >= 0).any()):
        places = ours.lengths.long().clamp(max=candidates * LEVELS - 1)
        rows.append(table[torch.arange(requests, device=device), places])
        ours.push(rows[-1])

    def permutation() -> None:
        ours.reset()
        for values in rows:
            ours.push(values)

    nodes, paths, positions = (
        on_device(each, device) for each in (tables.path_nodes, tables.path_codes, tables.positions)
    )

    def by_operations() -> torch.Tensor:
        return generate_by_operations(nodes, paths, positions, table)

    expected = by_operations()
    assert torch.equal(ours.order.long(), expected)
    mine = timer.seconds(timer.graphed(permutation))
    assert torch.equal(ours.order.long(), expected), "a graph's replay is another permutation"
    python = timer.seconds(permutation)
    eager = timer.seconds(by_operations, batches=3)
    replayed = timer.seconds(timer.graphed(by_operations), batches=3)
    what = f"a permutation of {candidates}, batch {requests}, a graph's replay"
    what += ": times faster than PyTorch operations from Python"
    figures = [Figure.judge(what, eager / mine, 3.0)]
    cells = [
        len(rows),
        *(f"{1e3 * each:.2f}" for each in (mine, python, eager, replayed)),
        f"{1e6 * mine / len(rows):.1f}",
    ]
    columns = [
        "decisions",
        "ours ms",
        "ours from Python ms",
        "PyTorch eager ms",
        "PyTorch graph ms",
        "ours us a decision",
    ]
    return figures, {
        "title": f"rank_step: {requests} requests of {candidates} candidates",
        "columns": columns,
        "rows": [cells],
    }

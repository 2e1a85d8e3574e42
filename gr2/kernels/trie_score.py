"""Exact scores of the candidates of a batch of requests from one forward pass over their tries, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from gr2.kernels.keys import first_bad, packed_key, row_summary

__all__ = ["score_shape", "trie_score_kernel"]

LARGEST = tl.constexpr(3.4028234663852886e38)


def score_shape(level_size: int, levels: int, candidates: int) -> dict[str, int]:
    """The sizes that `trie_score_kernel` is compiled for, and its warps."""
    block = min(4096, max(16, triton.next_power_of_2(level_size)))
    lanes = max(16, triton.next_power_of_2(candidates))
    return {
        "VOCAB": level_size,
        "BLOCK": block,
        "ROWS": max(1, min(16, 2048 // block, 2048 // lanes)),
        "LEVELS": levels,
        "LANES": lanes,
        "num_warps": min(8, max(block // 512, lanes // 64, 4)),
    }


@triton.jit(do_not_specialize=["rows_apart", "nodes", "candidates"])
def trie_score_kernel(
    logits,  # (B, n, VOCAB)
    rows_apart,  # rows from one request to the next
    prior,  # (B, K) float32
    counts,  # (B, 2) int32: inner nodes and known candidates
    path_nodes,  # (B, LEVELS, K) int16: the node at which each level's code is chosen
    path_codes,  # (B, LEVELS, K) int16
    positions,  # (B, K) int16: the known candidates by path, then the unknown
    first_child,  # (B, n + 1) int16
    child_codes,  # (B, n + K) int16
    denominators,  # (B, n) float64: memory between the programs of a request
    keys,  # (B, LANES) int64
    arrivals,  # (B,) int32, zeros before and after
    fault,  # (2, B) int64: the first logit that is not finite, as node << 16 | column, and the first such prior
    order,  # (B, K) int32
    scores,  # (B, K) float32
    nodes,  # n
    candidates,  # K
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    LEVELS: tl.constexpr,
    LANES: tl.constexpr,
    LOCAL: tl.constexpr,
    PRIOR: tl.constexpr,
):
    """A program a group of nodes: log(sum(exp(row))). The last of a request to arrive adds up the paths, a lane a
    candidate.
    """
    i_request = tl.program_id(1).to(tl.int64)
    used = tl.load(counts + 2 * i_request)
    o_node = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = o_node < used
    if tl.program_id(0) * ROWS < used:
        rows = logits + (i_request * rows_apart + o_node) * VOCAB
        top, bottom, total = row_summary(rows, inside, 1.0, ROWS, VOCAB, BLOCK)
        bad = inside & ~((total >= 0.0) & (bottom > float("-inf")))
        if tl.sum(bad.to(tl.int32)) > 0:
            tl.atomic_min(fault + i_request, first_bad(rows, o_node, bad, VOCAB, BLOCK, True))
        if LOCAL:
            table = first_child + i_request * (nodes + 1) + o_node
            begin = tl.load(table, mask=inside, other=0).to(tl.int32)
            degree = tl.load(table + 1, mask=inside, other=0).to(tl.int32) - begin
            o_child = tl.arange(0, LANES)
            live = o_child[None, :] < degree[:, None]
            edge = i_request * (nodes + candidates) + begin[:, None] + o_child[None, :]
            code = tl.load(child_codes + edge, mask=live, other=0).to(tl.int32)
            b_logit = tl.load(rows[:, None] + code, mask=live, other=float("-inf")).to(tl.float32)
            top = tl.max(b_logit, axis=1)
            total = tl.sum(tl.where(live, tl.exp(b_logit - top[:, None]), 0.0), axis=1)
        sums = top.to(tl.float64) + tl.log(total).to(tl.float64)
        tl.store(denominators + i_request * nodes + o_node, sums, mask=inside)
        # What the others wrote is seen after their arrival, if all threads had written before it.
        tl.debug_barrier()
        arrived = tl.atomic_add(arrivals + i_request, 1, sem="acq_rel")
        if arrived == (used + ROWS - 1) // ROWS - 1:
            tl.store(arrivals + i_request, 0)
            rank_candidates(
                logits + i_request * rows_apart * VOCAB,
                prior + i_request * candidates,
                tl.load(counts + 2 * i_request + 1),
                path_nodes + i_request * LEVELS * candidates,
                path_codes + i_request * LEVELS * candidates,
                positions + i_request * candidates,
                denominators + i_request * nodes,
                keys + i_request * LANES,
                fault + tl.num_programs(1) + i_request,
                order + i_request * candidates,
                scores + i_request * candidates,
                candidates,
                VOCAB,
                LEVELS,
                LANES,
                PRIOR,
            )


@triton.jit
def rank_candidates(
    logits,
    prior,
    known,
    path_nodes,
    path_codes,
    positions,
    denominators,
    keys,
    fault,
    order,
    scores,
    candidates,
    VOCAB: tl.constexpr,
    LEVELS: tl.constexpr,
    LANES: tl.constexpr,
    PRIOR: tl.constexpr,
):
    """Scores and order of one request's candidates; sums are in float64, as a lane has only a few terms."""
    o_lane = tl.arange(0, LANES)
    inside = o_lane < candidates
    live = o_lane < known
    position = tl.load(positions + o_lane, mask=inside, other=0).to(tl.int32)
    total = tl.zeros([LANES], tl.float64)
    for level in tl.static_range(LEVELS):
        node = tl.load(path_nodes + level * candidates + o_lane, mask=live, other=0).to(tl.int32)
        code = tl.load(path_codes + level * candidates + o_lane, mask=live, other=0).to(tl.int32)
        logit = tl.load(logits + node.to(tl.int64) * VOCAB + code, mask=live, other=0.0).to(tl.float64)
        total += logit - tl.load(denominators + node, mask=live, other=0.0, cache_modifier=".cg")
    if PRIOR:
        extra = tl.load(prior + position, mask=inside, other=0.0).to(tl.float64)
        finite = (extra > -LARGEST - 1e32) & (extra < LARGEST + 1e32)
        bad = tl.min(tl.where(finite, LANES, position))
        if bad < LANES:
            tl.atomic_min(fault, bad.to(tl.int64))
        total += extra
    total = tl.minimum(tl.maximum(total, -LARGEST), LARGEST)
    score = tl.where(live, total.to(tl.float32), float("-inf"))
    tl.store(scores + position, score, mask=inside)
    # Unknown candidates have the least keys, in incoming order.
    key = packed_key(score + 0.0, position)
    key = tl.where(inside, key, 0x7FFFFFFFFFFFFFFF)
    tl.store(keys + o_lane, key)
    tl.debug_barrier()
    rank = tl.zeros([LANES], tl.int32)
    for begin in range(0, candidates, 16):
        others = tl.load(keys + begin + tl.arange(0, 16))
        rank += tl.sum((others[None, :] < key[:, None]).to(tl.int32), axis=1)
    tl.store(order + rank, position, mask=inside)

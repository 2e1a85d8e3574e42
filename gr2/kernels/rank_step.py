"""One decision of the generation of each request of a batch, in one launch: what CandidateDecoder.push does."""

from __future__ import annotations

import triton
import triton.language as tl

from gr2.kernels.keys import first_bad, row_summary

__all__ = ["STATE", "rank_shape", "rank_step_kernel"]

# Numbers of a request's state: the range [low, high) of sorted candidates below the node, its depth (-1 if no decision
# is due), items emitted, codes since the start, codes before the last decision, decisions.
STATE = 8

LARGEST = tl.constexpr(3.4028234663852886e38)
GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
MIX = tl.constexpr(0xD6E8FEB86659FD93)


def rank_shape(level_size: int, levels: int, candidates: int) -> dict[str, int]:
    """The sizes that `rank_step_kernel` is compiled for, and its warps."""
    block = min(4096, max(16, triton.next_power_of_2(level_size)))
    lanes = max(16, triton.next_power_of_2(candidates))
    return {
        "VOCAB": level_size,
        "BLOCK": block,
        "LEVELS": levels,
        "LANES": lanes,
        "num_warps": 4 if max(block // 4, lanes) > 128 else 1,
    }


@triton.jit
def mix64(x):
    """The bijection of csrc/core/hash.h."""
    x = (x ^ (x >> 32)) * tl.full((), MIX, tl.uint64)
    x = (x ^ (x >> 32)) * tl.full((), MIX, tl.uint64)
    return x ^ (x >> 32)


@triton.jit
def portable_log(x):
    """log(x) in float64 by the operations of csrc/core/sampling.h, in its order; needs enable_fp_fusion=False."""
    bits = x.to(tl.int64, bitcast=True)
    exponent = (bits >> 52) - 1023
    m = ((bits & 0x000FFFFFFFFFFFFF) | 0x3FF0000000000000).to(tl.float64, bitcast=True)
    large = m * m >= 2.0
    m = tl.where(large, m * 0.5, m)
    exponent += large.to(tl.int64)
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    total = tl.zeros_like(s)
    for step in tl.static_range(12):
        total = total * square + 1.0 / (23 - 2 * step)
    return 2.0 * s * total + exponent.to(tl.float64) * 0.693147180559945309417


@triton.jit
def gumbel(seed, stream, index):
    """The draws of csrc/core/sampling.h that belong to the int64 seed and stream and to each int32 index."""
    golden = tl.full((), GOLDEN, tl.uint64)
    state = mix64(mix64(seed.to(tl.uint64) + golden) + stream.to(tl.uint64) + golden)
    bits = mix64(state + golden * index.to(tl.uint64))
    uniform = ((bits >> 12).to(tl.int64).to(tl.float64) + 0.5) * 2.220446049250313e-16
    return -portable_log(-portable_log(uniform))


@triton.jit(do_not_specialize=["rows_apart", "candidates"])
def rank_step_kernel(
    logits,  # (B, VOCAB)
    rows_apart,  # rows from one request to the next
    counts,  # (B, 2) int32: inner nodes and known candidates
    path_nodes,  # (B, LEVELS, K) int16: of the sorted candidates, the node at which each level's code is chosen
    path_codes,  # (B, LEVELS, K) int16
    starts,  # (B, LEVELS, K) int16: the first candidate that shares the codes down to this level
    positions,  # (B, K) int16
    cum,  # (B, K + 1) int16: how many remain of the first i sorted candidates
    state,  # (B, STATE) int32
    seeds,  # (B,) int64
    temperatures,  # (B,) float64
    most,  # (B,) int32: items to emit at most
    order,  # (B, K) int32
    codes,  # (B, K * LEVELS) int16: every code since the start
    forced,  # (B, K * LEVELS) int8
    local,  # (B, K * LEVELS) float32
    raw,  # (B, K * LEVELS) float32
    node,  # (B,) int32: where the coming decision is due, -1 if none is
    chosen,  # (B,) int32: the code chosen, -1 if none was
    fault,  # (1,) int64
    candidates,  # K
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    LEVELS: tl.constexpr,
    LANES: tl.constexpr,
    START: tl.constexpr,
    SAMPLE: tl.constexpr,
):
    """A program a request, a lane a candidate. A child is allowed iff cum[high] > cum[low]; a lone one is forced, so
    that all codes that the remaining candidates of a node share are taken at once.
    """
    i_request = tl.program_id(0).to(tl.int64)
    o_lane = tl.arange(0, LANES)
    inside = o_lane < candidates
    path_nodes += i_request * LEVELS * candidates
    path_codes += i_request * LEVELS * candidates
    starts += i_request * LEVELS * candidates
    positions += i_request * candidates
    cum += i_request * (candidates + 1)
    state += i_request * 8
    order += i_request * candidates
    codes += i_request * candidates * LEVELS
    forced += i_request * candidates * LEVELS
    local += i_request * candidates * LEVELS
    raw += i_request * candidates * LEVELS

    size = tl.load(counts + 2 * i_request + 1)
    if START:
        before = tl.where(o_lane < size, o_lane, size)
        alive = o_lane < size
        low = tl.full((), 0, tl.int32)
        high = size
        depth = tl.full((), 0, tl.int32)
        emitted = tl.full((), 0, tl.int32)
        length = tl.full((), 0, tl.int32)
        fresh = tl.full((), 0, tl.int32)
        decisions = tl.full((), 0, tl.int32)
        walking = size >= 0
    else:
        before = tl.load(cum + o_lane, mask=inside, other=0).to(tl.int32)
        alive = tl.load(cum + o_lane + 1, mask=inside, other=0).to(tl.int32) > before
        low = tl.load(state)
        high = tl.load(state + 1)
        depth = tl.load(state + 2)
        emitted = tl.load(state + 3)
        length = tl.load(state + 4)
        fresh = tl.load(state + 5)
        decisions = tl.load(state + 6)
        walking = depth >= 0
        code = tl.full((), -1, tl.int32)
        if walking:
            row = logits + i_request * rows_apart * VOCAB
            temperature = tl.load(temperatures + i_request)
            scale = (1.0 / temperature).to(tl.float32)
            o_row = tl.arange(0, 1)
            tops, _, totals = row_summary(row + o_row, o_row == 0, scale, 1, VOCAB, BLOCK)
            top, total = tl.max(tops), tl.max(totals)
            if tl.sum((totals >= 0.0).to(tl.int32)) == 0:
                tl.atomic_min(fault, first_bad(row + o_row, i_request + o_row, o_row == 0, VOCAB, BLOCK, False))
                walking = walking & False
            else:
                allowed = alive & (o_lane >= low) & (o_lane < high)
                level = depth * candidates
                b_code = tl.load(path_codes + level + o_lane, mask=allowed, other=0).to(tl.int32)
                b_start = tl.load(starts + level + o_lane, mask=allowed, other=0).to(tl.int32)
                b_logit = tl.load(row + b_code, mask=allowed, other=float("-inf")).to(tl.float32)
                position = tl.load(positions + o_lane, mask=inside, other=LANES).to(tl.int32)
                if SAMPLE:
                    noise = gumbel(tl.load(seeds + i_request), decisions.to(tl.int64), b_code)
                    wish = b_logit.to(tl.float64) / temperature + noise
                    wish = tl.where(allowed, wish, float("-inf"))
                else:
                    wish = b_logit
                best = tl.max(wish)
                # The child whose first remaining candidate came first, among those that tie.
                tied = allowed & (wish == best)
                place = tl.min(tl.where(tied, position, LANES))
                lane = tl.min(tl.where(tied & (position == place), o_lane, LANES))
                fresh = length
                if best == float("-inf"):
                    walking = walking & False
                    depth = depth * 0 - 1
                else:
                    code = tl.load(path_codes + level + lane).to(tl.int32)
                    own = tl.load(row + code).to(tl.float32)
                    # A child's first remaining candidate stands for it in the sum.
                    head = allowed & (before == tl.load(cum + b_start, mask=allowed, other=-1).to(tl.int32))
                    highest = tl.max(b_logit)
                    shares = tl.where(head, tl.exp((b_logit - highest) * scale), 0.0)
                    near = (own - highest) * scale - tl.log(tl.sum(shares))
                    far = (own - top) * scale - tl.log(total)
                    near = tl.minimum(tl.maximum(near, -LARGEST), LARGEST)
                    tl.store(codes + length, code.to(tl.int16))
                    tl.store(forced + length, 0)
                    tl.store(local + length, near)
                    tl.store(raw + length, tl.minimum(tl.maximum(far, -LARGEST), near))
                    length += 1
                    decisions += 1
                    low = tl.load(starts + level + lane).to(tl.int32)
                    high = tl.max(tl.where(allowed & (b_start == low), o_lane, -1)) + 1
                    depth += 1
        tl.store(chosen + i_request, code)

    moved = walking
    limit = tl.minimum(size, tl.load(most + i_request))
    while walking:
        here = alive & (o_lane >= low) & (o_lane < high)
        first = tl.min(tl.where(here, o_lane, LANES))
        last = tl.max(tl.where(here, o_lane, -1))
        if (last < 0) | (emitted >= limit):
            walking = walking & False
            depth = depth * 0 - 1
        else:
            # The remaining of a node share what its first and its last share, as they are sorted.
            shared = depth
            for level in tl.static_range(LEVELS):
                start = tl.load(starts + level * candidates + last).to(tl.int32)
                together = (start <= first) & (shared == level)
                if together:
                    tl.store(codes + length, tl.load(path_codes + level * candidates + first))
                    tl.store(forced + length, 1)
                    tl.store(local + length, 0.0)
                    tl.store(raw + length, float("nan"))
                shared += together.to(tl.int32)
                length += together.to(tl.int32)
            depth = shared
            if shared == LEVELS:
                tl.store(order + emitted, tl.load(positions + first).to(tl.int32))
                emitted += 1
                alive = alive & (o_lane != first)
                before -= (o_lane > first).to(tl.int32)
                low = low * 0
                high = size
                depth = depth * 0
            else:
                walking = walking & False
                if shared > 0:
                    start = tl.load(starts + (shared - 1) * candidates + first).to(tl.int32)
                    low = start
                    high = last + 1
    # Of the last candidate there is no lane that says how many remain with it.
    if moved:
        tl.debug_barrier()
        tl.store(cum + o_lane, before.to(tl.int16), mask=inside)
        tl.store(cum + candidates, tl.sum(alive.to(tl.int32)).to(tl.int16))
    tl.store(state, low)
    tl.store(state + 1, high)
    tl.store(state + 2, depth)
    tl.store(state + 3, emitted)
    tl.store(state + 4, length)
    tl.store(state + 5, fresh)
    tl.store(state + 6, decisions)
    at = tl.full((), -1, tl.int32)
    if depth >= 0:
        at = tl.load(path_nodes + depth * candidates + low).to(tl.int32)
    tl.store(node + i_request, at)

"""What the kernels share: scores as integers whose order is the rule for ties, and the summary of a row of logits."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["NEVER", "first_bad", "key_limit", "key_order", "key_score", "packed_key", "row_summary"]

# Of no candidate: its score would be NaN.
NEVER = tl.constexpr(0x7FFFFFFFFFFFFFFF)


@triton.jit
def packed_key(score, low):
    """int64 keys, the best first: by the float32 `score` downwards, then by `low` upwards, which is 0 to 2^31 - 1."""
    bits = score.to(tl.int32, bitcast=True)
    ascending = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return ((~ascending).to(tl.int64) << 32) | low.to(tl.int64)


@triton.jit
def key_score(key):
    """The score of `packed_key`."""
    ascending = ~((key >> 32).to(tl.int32))
    bits = tl.where(ascending < 0, ascending ^ 0x7FFFFFFF, ascending)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def key_limit(keys, wanted, room):
    """A limit that at least `wanted` of the distinct keys, or all, and at most `room` of them do not exceed."""
    count = tl.sum((keys < NEVER).to(tl.int32))
    low = tl.min(keys)
    high = tl.max(tl.where(keys < NEVER, keys, low))
    while count > room:
        # Halfway, in a form that cannot overflow.
        middle = (low & high) + ((low ^ high) >> 1)
        below = tl.sum((keys <= middle).to(tl.int32))
        enough = below >= wanted
        low = tl.where(enough, low, middle + 1)
        high = tl.where(enough, middle, high)
        count = tl.where(enough, below, count)
    return high


@triton.jit
def key_order(keys, stage, SIZE: tl.constexpr, PART: tl.constexpr):
    """The rank of each of `keys` (SIZE,) among them; `stage` (SIZE,) int64 is memory of this program."""
    tl.store(stage + tl.arange(0, SIZE), keys)
    tl.debug_barrier()
    rank = tl.zeros([SIZE], tl.int32)
    for begin in range(0, SIZE, PART):
        others = tl.load(stage + begin + tl.arange(0, PART))
        rank += tl.sum((others[None, :] < keys[:, None]).to(tl.int32), axis=1)
    return rank


@triton.jit
def row_summary(rows, inside, scale, ROWS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Of each row the largest and the smallest value and the sum of exp((x - largest) * scale), float32 (ROWS,).

    `rows` (ROWS,) are pointers to SIZE values each; rows not `inside` are not read. The sum is NaN if a value is NaN or
    +inf, and 0 if all are -inf.
    """
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    smallest = tl.full([ROWS], float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for begin in tl.static_range(0, SIZE, BLOCK):
        o_column = begin + tl.arange(0, BLOCK)
        b_inside = inside[:, None] & (o_column < SIZE)[None, :]
        x = tl.load(rows[:, None] + o_column[None, :], mask=b_inside, other=float("-inf")).to(tl.float32)
        smallest = tl.minimum(smallest, tl.min(tl.where(b_inside, x, float("inf")), axis=1))
        top = tl.maximum(largest, tl.max(x, axis=1))
        shift = tl.where(top == float("-inf"), 0.0, top)
        grown = tl.exp((largest - shift) * scale)
        total = total * grown + tl.sum(tl.exp((x - shift[:, None]) * scale), axis=1)
        largest = top
    return largest, smallest, total


@triton.jit
def first_bad(rows, number, inside, SIZE: tl.constexpr, BLOCK: tl.constexpr, FINITE: tl.constexpr):
    """The first value that is NaN or +inf, with FINITE also -inf, as the row's `number` << 16 | column; or NEVER."""
    found = tl.full((), NEVER, tl.int64)
    for begin in tl.static_range(0, SIZE, BLOCK):
        o_column = begin + tl.arange(0, BLOCK)
        b_inside = inside[:, None] & (o_column < SIZE)[None, :]
        x = tl.load(rows[:, None] + o_column[None, :], mask=b_inside, other=0.0).to(tl.float32)
        good = x < float("inf")
        if FINITE:
            good = good & (x > float("-inf"))
        place = (number[:, None].to(tl.int64) << 16) | o_column[None, :]
        found = tl.minimum(found, tl.min(tl.where(good, NEVER, place)))
    return found

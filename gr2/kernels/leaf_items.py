"""The items of the leaves that a beam search ended at: what Retriever.finish does, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["leaf_items_kernel", "leaf_shape"]


def leaf_shape(beams: int, widest: int, *, filtered: bool) -> dict[str, int]:
    """The sizes that `leaf_items_kernel` is compiled for; `widest` is the most items of a leaf."""
    # Without a filter the first M items of a leaf are enough.
    leaf = triton.next_power_of_2(widest if filtered else min(widest, beams))
    return {"BEAMS": beams, "LEAF": leaf, "BLOCK": max(16, min(1024, triton.next_power_of_2(beams * leaf)))}


@triton.jit(do_not_specialize=["permitted_stride"], do_not_specialize_on_alignment=["nodes", "node_scores"])
def leaf_items_kernel(
    offsets,  # (leaves + 1,) int32
    permitted,  # (F, N) uint8
    which,  # (B,) int32: the filter of each search, -1 for none
    permitted_stride,
    nodes,  # (B, BEAMS) int32: leaves, -1 if dead
    node_scores,  # (B, BEAMS) float32
    items,  # (B, BEAMS) int64
    scores,  # (B, BEAMS) float32
    BEAMS: tl.constexpr,
    LEAF: tl.constexpr,
    BLOCK: tl.constexpr,
    FILTERED: tl.constexpr,
):
    """A program a search, a lane a place in a leaf; the permitted are numbered by a running sum."""
    i_search = tl.program_id(0).to(tl.int64)
    first = i_search * BEAMS
    written = tl.full((), 0, tl.int32)
    for start in range(0, BEAMS * LEAF, BLOCK):
        o_place = start + tl.arange(0, BLOCK)
        o_beam = o_place // LEAF
        inside = o_beam < BEAMS
        leaf = tl.load(nodes + first + o_beam, mask=inside, other=-1)
        live = leaf >= 0
        item = tl.load(offsets + leaf, mask=live, other=0) + o_place % LEAF
        live = live & (item < tl.load(offsets + leaf + 1, mask=live, other=0))
        if FILTERED:
            number = tl.load(which + i_search)
            allowed = permitted + number.to(tl.int64) * permitted_stride
            open_ = tl.load(allowed + item, mask=live & (number >= 0), other=1)
            live = live & (open_ != 0)
        place = written + tl.cumsum(live.to(tl.int32), 0) - 1
        score = tl.load(node_scores + first + o_beam, mask=inside, other=0.0)
        kept = live & (place < BEAMS)
        tl.store(items + first + place, item.to(tl.int64), mask=kept)
        tl.store(scores + first + place, score, mask=kept)
        written += tl.sum(live.to(tl.int32))
    for start in range(0, BEAMS, BLOCK):
        o_place = start + tl.arange(0, BLOCK)
        rest = (o_place >= written) & (o_place < BEAMS)
        tl.store(items + first + o_place, -1, mask=rest)
        tl.store(scores + first + o_place, float("-inf"), mask=rest)

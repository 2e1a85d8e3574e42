"""One level of a beam search over a catalogue's trie, in one launch: what Retriever.step does, where the logits are."""

from __future__ import annotations

import triton
import triton.language as tl

from gr2.kernels.keys import NEVER, first_bad, key_limit, key_order, key_score, packed_key, row_summary

__all__ = ["constrained_step_kernel", "step_shape"]

# Logits and children that a program holds at once: enough to keep the memory busy with few programs.
TILE, CHILD_TILE = 4096, 2048
# Candidates that the last program of a search holds in registers while it chooses: all, or the best of more.
POOL, BEST_POOL = 2048, 1024
# Registers of a thread: three programs of 8 warps fit on a multiprocessor with at most 80. With these, by beams and
# rows, no search of `make kernels-code` spills.
FEW_BEAMS, FEW_REGISTERS, REGISTERS, ROW_REGISTERS = 64, 72, 74, 80


def step_shape(level_size: int, beams: int, width: int, widest: int) -> dict[str, int]:
    """The sizes that `constrained_step_kernel` is compiled for, its warps, and its registers where they are bounded.

    `beams` is M, `width` the beams before the step, `widest` the most children of a node of the level.
    """
    room = max(16, triton.next_power_of_2(beams))
    children = max(16, triton.next_power_of_2(widest))
    block = min(TILE, max(16, triton.next_power_of_2(level_size)))
    rows = max(1, min(16, TILE // block, CHILD_TILE // children, triton.next_power_of_2(width)))
    kept = min(room, rows * children)
    slots = triton.next_power_of_2(triton.cdiv(width, rows) * kept)
    pool = max(room, slots) if slots <= POOL else max(BEST_POOL, 2 * room)
    # A level is as fast as rows are in flight, which registers limit: with 8 children a thread more programs fit.
    share = 256 if room > 16 and width > 1 else 512
    # Left to itself, ptxas spills here to have three or four programs on a multiprocessor, or has two.
    full = room <= 128 and (rows * block == TILE or rows == 1)
    crowded = share == 256 and children > 16 and (full or room <= FEW_BEAMS)
    registers = FEW_REGISTERS if room <= FEW_BEAMS else ROW_REGISTERS if rows == 1 else REGISTERS
    warps = max(rows * block // 512, rows * children // share, room // 32, pool // 512)
    return {
        "VOCAB": level_size,
        "BLOCK": block,
        "ROWS": rows,
        "BEAMS": beams,
        "WIDTH": width,
        "CHILDREN": children,
        "ROOM": room,
        "KEPT": kept,
        "POOL": pool,
        "num_warps": min(8, max(1, warps)),
        **({"maxnreg": registers} if crowded else {}),
    }


# Parts of larger arrays, which begin at 16 bytes or do not: one kernel is enough.
PARTS = ["nodes", "scores", "next_nodes", "next_scores", "next_parents", "next_codes", "fault"]


@triton.jit(do_not_specialize=["rows_apart", "permitted_stride"], do_not_specialize_on_alignment=PARTS)
def constrained_step_kernel(
    logits,  # (B, WIDTH, VOCAB)
    rows_apart,  # rows from one search to the next
    offsets,  # (n + 1,) int32: the edges of the level's nodes
    codes,  # (e,) int16: the edges' codes
    permitted,  # (F, e) uint8: the edges that lead to a permitted item
    which,  # (B,) int32: the filter of each search, -1 for none
    permitted_stride,
    nodes,  # (B, BEAMS) int32, -1 if dead
    scores,  # (B, BEAMS) float32
    next_nodes,
    next_scores,
    next_parents,  # (B, BEAMS) int32
    next_codes,  # (B, BEAMS) int32
    keys,  # (B, GROUPS, KEPT) int64 and what follows: memory between the programs of a search
    counts,  # (B, BEAMS) int32: the keys of each program
    limits,  # (B, BEAMS) int64: a key that M of them do not exceed
    bests,  # (B, BEAMS) int64: the best key of each beam's children
    stage,  # (B, POOL) int64
    arrivals,  # (B,) int32, zeros before and after
    bounds,  # (B,) int64, NEVER before and after: a key that M of the search's keys so far do not exceed
    fault,  # (1,) int64: the first bad logit, as beam of the batch << 16 | column
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    BEAMS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHILDREN: tl.constexpr,
    ROOM: tl.constexpr,
    KEPT: tl.constexpr,
    POOL: tl.constexpr,
    LOCAL: tl.constexpr,
    FILTERED: tl.constexpr,
):
    """A program a group of beams: the sums over their rows, and the best of their children as keys. The last of a
    search to arrive takes the best of all. One launch: the second of two would wait for every search's last beam.

    All searches' best beams begin first: most children of the others exceed the bound that these leave behind, so that
    there is nothing to choose among them.
    """
    GROUPS: tl.constexpr = (WIDTH + ROWS - 1) // ROWS
    # A few beams are chosen fast, and registers are better spent on more programs.
    BOUNDED: tl.constexpr = GROUPS > 1 and ROOM > 16
    i_group = tl.program_id(1)
    i_search = tl.program_id(0).to(tl.int64)
    first = i_search * BEAMS
    if BOUNDED:
        bound = tl.load(bounds + i_search, cache_modifier=".cg")
    o_beam = i_group * ROWS + tl.arange(0, ROWS)
    inside = o_beam < WIDTH
    # Rows of dead beams are read, too, rather than after it is known which are dead.
    rows = logits + (i_search * rows_apart + o_beam) * VOCAB
    top, _, total = row_summary(rows, inside, 1.0, ROWS, VOCAB, BLOCK)
    node = tl.load(nodes + first + o_beam, mask=inside, other=-1)
    alive = node >= 0
    begin = tl.load(offsets + node, mask=alive, other=0)
    degree = tl.load(offsets + node + 1, mask=alive, other=0) - begin
    o_child = tl.arange(0, CHILDREN)
    live = o_child[None, :] < degree[:, None]
    edge = begin[:, None] + o_child[None, :]
    code = tl.load(codes + edge, mask=live, other=0).to(tl.int32)
    if FILTERED:
        number = tl.load(which + i_search)
        allowed = permitted + number.to(tl.int64) * permitted_stride
        open_ = tl.load(allowed + edge, mask=live & (number >= 0), other=1)
        live = live & (open_ != 0)
    b_logit = tl.load(rows[:, None] + code, mask=live, other=float("-inf")).to(tl.float32)
    usable = total >= 0.0
    bad = alive & ~usable
    if tl.sum(bad.to(tl.int32)) > 0:
        tl.atomic_min(fault, first_bad(rows, i_search * WIDTH + o_beam, bad, VOCAB, BLOCK, False))
    live = live & usable[:, None]
    if LOCAL:
        top = tl.max(tl.where(live, b_logit, float("-inf")), axis=1)
        total = tl.sum(tl.where(live, tl.exp(b_logit - top[:, None]), 0.0), axis=1)
    base = tl.load(scores + first + o_beam, mask=inside, other=0.0) - tl.log(total)
    score = (b_logit - top[:, None]) + base[:, None]
    # A masked child's score is -inf or, in a row of nothing else, NaN.
    live = live & (score > float("-inf"))
    key = tl.where(live, packed_key(score, (o_beam[:, None] << 16) | o_child[None, :]), NEVER)
    tl.store(bests + first + o_beam, tl.min(key, axis=1), mask=inside)
    key = tl.reshape(key, [ROWS * CHILDREN], can_reorder=True)
    if BOUNDED:
        key = tl.where(key <= bound, key, NEVER)
    chosen = key < NEVER
    if ROWS * CHILDREN > ROOM:
        chosen = chosen & (key <= key_limit(key, BEAMS, ROOM))
    place = tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(keys + (i_search * GROUPS + i_group) * KEPT + place, key, mask=chosen)
    count = tl.sum(chosen.to(tl.int32))
    tl.store(counts + first + i_group, count)
    limit = tl.max(tl.where(chosen, key, -NEVER))
    limit = tl.where(count >= BEAMS, limit, NEVER)
    tl.store(limits + first + i_group, limit)
    if BOUNDED:
        tl.atomic_min(bounds + i_search, limit, sem="relaxed")
    # What the others wrote is seen after their arrival, if all threads had written before it.
    tl.debug_barrier()
    arrived = tl.atomic_add(arrivals + i_search, 1, sem="acq_rel")
    if arrived == GROUPS - 1:
        tl.store(arrivals + i_search, 0)
        if BOUNDED:
            tl.store(bounds + i_search, tl.full((), NEVER, tl.int64))
        pool = best_of_search(
            keys + i_search * GROUPS * KEPT,
            counts + first,
            limits + first,
            bests + first,
            stage + i_search * POOL,
            BEAMS,
            WIDTH,
            GROUPS,
            KEPT,
            POOL,
        )
        if POOL > ROOM:
            final = (pool <= key_limit(pool, BEAMS, ROOM)) & (pool < NEVER)
            tl.debug_barrier()
            slot = tl.cumsum(final.to(tl.int32), 0) - 1
            tl.store(stage + i_search * POOL + slot, pool, mask=final)
            tl.debug_barrier()
            o_key = tl.arange(0, ROOM)
            found = tl.sum(final.to(tl.int32))
            beams = tl.load(stage + i_search * POOL + o_key, mask=o_key < found, other=NEVER)
        else:
            beams = pool
        tl.debug_barrier()
        write_beams(
            beams,
            stage + i_search * POOL,
            offsets,
            codes,
            nodes + first,
            next_nodes + first,
            next_scores + first,
            next_parents + first,
            next_codes + first,
            BEAMS,
            ROOM,
        )


@triton.jit
def best_of_search(
    keys,
    counts,
    limits,
    bests,
    stage,
    BEAMS: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    KEPT: tl.constexpr,
    POOL: tl.constexpr,
):
    """At most POOL of a search's keys (POOL,), among them the best BEAMS; NEVER fills up."""
    if GROUPS * KEPT <= POOL:
        pool = load_keys(keys, counts, 0, GROUPS, KEPT, POOL)
    else:
        # The worst that may still enter: the M-th of any program, and the worst of M beams' first children.
        bound = tl.full((), NEVER - 1, tl.int64)
        worst = tl.full((), -NEVER, tl.int64)
        for begin in tl.static_range(0, GROUPS, 128):
            o_group = begin + tl.arange(0, 128)
            limit = tl.load(limits + o_group, mask=o_group < GROUPS, other=NEVER, cache_modifier=".cg")
            bound = tl.minimum(bound, tl.min(limit))
        if WIDTH == BEAMS:
            for begin in tl.static_range(0, WIDTH, 128):
                o_beam = begin + tl.arange(0, 128)
                best = tl.load(bests + o_beam, mask=o_beam < WIDTH, other=-NEVER, cache_modifier=".cg")
                worst = tl.maximum(worst, tl.max(best))
            bound = tl.minimum(bound, worst)
        low = tl.full((), -NEVER, tl.int64)
        size = count_keys(keys, counts, bound, GROUPS, KEPT, POOL)
        while size > POOL:
            middle = (low & bound) + ((low ^ bound) >> 1)
            below = count_keys(keys, counts, middle, GROUPS, KEPT, POOL)
            enough = below >= BEAMS
            low = tl.where(enough, low, middle + 1)
            bound = tl.where(enough, middle, bound)
            size = tl.where(enough, below, size)
        written = tl.full((), 0, tl.int32)
        for begin in range(0, GROUPS * KEPT, POOL):
            key = load_keys(keys, counts, begin, GROUPS, KEPT, POOL)
            chosen = key <= bound
            place = written + tl.cumsum(chosen.to(tl.int32), 0) - 1
            tl.store(stage + place, key, mask=chosen)
            written += tl.sum(chosen.to(tl.int32))
        tl.debug_barrier()
        o_slot = tl.arange(0, POOL)
        pool = tl.load(stage + o_slot, mask=o_slot < written, other=NEVER)
    return pool


@triton.jit
def load_keys(keys, counts, begin, GROUPS: tl.constexpr, KEPT: tl.constexpr, POOL: tl.constexpr):
    """POOL of the programs' keys, from slot `begin` on; NEVER where a program has no more."""
    o_slot = begin + tl.arange(0, POOL)
    held = tl.load(counts + o_slot // KEPT, mask=o_slot < GROUPS * KEPT, other=0, cache_modifier=".cg")
    return tl.load(keys + o_slot, mask=o_slot % KEPT < held, other=NEVER, cache_modifier=".cg")


@triton.jit
def count_keys(keys, counts, limit, GROUPS: tl.constexpr, KEPT: tl.constexpr, POOL: tl.constexpr):
    """How many of a search's keys do not exceed the limit."""
    total = tl.zeros([POOL], tl.int32)
    for begin in range(0, GROUPS * KEPT, POOL):
        total += (load_keys(keys, counts, begin, GROUPS, KEPT, POOL) <= limit).to(tl.int32)
    return tl.sum(total)


@triton.jit
def write_beams(
    keys,
    stage,
    offsets,
    codes,
    nodes,
    next_nodes,
    next_scores,
    next_parents,
    next_codes,
    BEAMS: tl.constexpr,
    ROOM: tl.constexpr,
):
    """The new beams in order, from at most ROOM keys; those that there are no keys for are dead."""
    live = keys < NEVER
    parent = ((keys >> 16) & 0xFFFF).to(tl.int32)
    begin = tl.load(offsets + tl.load(nodes + parent, mask=live, other=0), mask=live, other=0)
    edge = begin + (keys & 0xFFFF).to(tl.int32)
    code = tl.load(codes + edge, mask=live, other=0).to(tl.int32)
    rank = key_order(keys, stage, ROOM, 16 if ROOM < 32 or ROOM > 512 else 32)
    kept = live & (rank < BEAMS)
    tl.store(next_nodes + rank, edge, mask=kept)
    tl.store(next_scores + rank, key_score(keys), mask=kept)
    tl.store(next_parents + rank, parent, mask=kept)
    tl.store(next_codes + rank, code, mask=kept)
    o_beam = tl.arange(0, ROOM)
    dead = (o_beam < BEAMS) & (o_beam >= tl.sum(live.to(tl.int32)))
    tl.store(next_nodes + o_beam, -1, mask=dead)
    tl.store(next_scores + o_beam, float("-inf"), mask=dead)
    tl.store(next_parents + o_beam, 0, mask=dead)
    tl.store(next_codes + o_beam, 0, mask=dead)

"""The core's parser of requests against the official one, on messages that are valid, odd, damaged and made up."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2._core import ParsedRequest
from gr2.v1 import reranker_pb2 as pb

VARINT, FIXED64, BYTES, START, END, FIXED32 = range(6)
DEPTH = 100


def varint(value: int, size: int = 0) -> bytes:
    """`value` in as few bytes as it takes, or padded to `size`."""
    out = bytearray()
    while value > 127 or len(out) + 1 < size:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def tag(field: int, kind: int, size: int = 0) -> bytes:
    return varint(field << 3 | kind, size)


def text(field: int, value: bytes) -> bytes:
    return tag(field, BYTES) + varint(len(value)) + value


def official(data: bytes) -> dict[str, Any] | None:
    try:
        message = pb.RerankRequest.FromString(data)
    except DecodeError:
        return None
    fields = {name: getattr(message, name) for name in ("request_id", "top_n", "bundle", "fallback", "priority")}
    ids = {name: getattr(message, name) for name in ("history", "candidates")}
    fields |= {name: (each.ints[:], each.strings[:]) for name, each in ids.items()}
    return fields | {name: bits(getattr(message, name)) for name in ("scores", "features")}


def bits(values: Any) -> bytes:
    """Floats as their bytes, since NaN is not NaN."""
    return struct.pack(f"<{len(values)}f", *values)


def ours(data: bytes) -> dict[str, Any] | None:
    request = ParsedRequest(data)
    if request.bundle is None:
        return None
    fields = request.fields()
    return fields | {name: bits(fields[name]) for name in ("scores", "features")}


def nested(depth: int) -> bytes:
    return tag(99, START) * depth + tag(99, END) * depth


ODD = [
    b"",
    *[tag(6, VARINT, size) + varint(7) for size in range(1, 8)],
    *[tag(6, VARINT) + varint(7, size) for size in range(1, 13)],
    *[tag(1, BYTES) + varint(1, size) + b"a" for size in range(1, 13)],
    *[tag(2, BYTES) + varint(1 + 1 + size) + text(1, varint(7, size)) for size in range(1, 13)],
    tag(6, VARINT) + b"\xff" * 9 + b"\x7f",
    tag(6, VARINT) + b"\xff" * 10,
    tag(6, VARINT) + varint(2**32 + 5),
    tag(8, VARINT) + varint(2**40),
    tag(9, VARINT) + varint(2**64 - 1),
    tag(9, VARINT) + varint(2**32 + 2),
    varint(2**32) + b"\x00",
    varint(2**32 - 8) + b"\x00",
    *[bytes([kind]) + bytes(9) for kind in range(8)],
    *[tag(field, kind) + bytes(8) for field in (1, 2, 4, 6, 8, 99) for kind in range(8)],
    *[nested(depth) for depth in (1, DEPTH - 1, DEPTH, DEPTH + 1)],
    *[text(3, nested(depth)) for depth in (1, DEPTH - 2, DEPTH - 1, DEPTH)],
    tag(99, START) + tag(98, END),
    tag(99, START) + text(1, b"\xff") + tag(99, END),
    tag(99, START) + text(2, tag(99, END)),
    text(2, tag(99, START)) + tag(99, END),
    tag(2, START) + tag(2, END),
    tag(99, BYTES) + varint(2**31) + b"a",
    tag(99, BYTES) + varint(2**31 - 1) + b"a",
    text(4, b"abc"),
    text(4, b""),
    text(4, struct.pack("<2f", 1, 2)) + tag(4, FIXED32) + struct.pack("<f", 3) + text(4, struct.pack("<f", -0.0)),
    tag(4, FIXED64) + bytes(8),
    text(2, text(1, varint(5)) + tag(1, VARINT) + varint(2**64 - 1)) + text(2, text(2, b"a") + text(1, varint(9))),
    text(1, b"first") + text(1, b"last"),
    text(1, b"\xff") + text(1, b"good"),
    *[text(1, bytes.fromhex(each)) for each in ("ed9fbf", "eda080", "c080", "f48fbfbf", "f4908080", "e09fbf")],
    *[text(1, bytes.fromhex(each)) for each in ("c2", "e180", "f18080", "80", "616161616161616161f8", "00")],
    text(7, b"other") + tag(8, VARINT) + b"\x01" + tag(9, VARINT) + b"\x02",
]  # fmt: skip


@pytest.mark.parametrize("data", ODD, ids=lambda data: data.hex()[:40] or "empty")
def test_odd_messages_are_taken_as_the_official_parser_takes_them(data: bytes) -> None:
    assert ours(data) == official(data)


def test_the_odd_messages_are_of_both_kinds() -> None:
    accepted = sum(official(data) is not None for data in ODD)
    assert 20 < accepted < len(ODD) - 20


NUMBERS = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1), st.sampled_from([2**31 - 1, 2**31, 2**32, 2**63]))
PAYLOAD = st.deferred(
    lambda: st.one_of(
        st.binary(max_size=12),
        st.text(max_size=6).map(str.encode),
        st.lists(st.builds(varint, NUMBERS, st.integers(0, 10)), max_size=5).map(b"".join),
        st.lists(st.floats(width=32), max_size=3).map(bits),
        MESSAGE,
    )
)
FIELD = st.integers(0, 12)
MESSAGE = st.deferred(
    lambda: st.lists(
        st.one_of(
            st.builds(lambda field, number, size: tag(field, VARINT, size) + varint(number), FIELD, NUMBERS, FIELD),
            st.builds(text, FIELD, PAYLOAD),
            st.builds(lambda field, value: tag(field, FIXED32) + bits([value]), FIELD, st.floats(width=32)),
            st.builds(lambda field: tag(field, FIXED64) + bytes(8), FIELD),
            st.builds(lambda field, inner: tag(field, START) + inner + tag(field, END), FIELD, PAYLOAD),
        ),
        max_size=4,
    ).map(b"".join)
)
IDS = st.builds(pb.ItemIds, ints=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4), strings=st.lists(st.text()))
VALID = st.builds(
    pb.RerankRequest,
    request_id=st.text(max_size=5),
    history=IDS,
    candidates=IDS,
    scores=st.lists(st.floats(width=32), max_size=4),
    features=st.lists(st.floats(width=32), max_size=4),
    top_n=st.integers(0, 2**32 - 1),
    fallback=st.booleans(),
    priority=st.integers(-(2**31), 2**31 - 1),
).map(pb.RerankRequest.SerializeToString)
EXAMPLES = max(1000, settings().max_examples)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.one_of(MESSAGE, VALID, st.binary(max_size=40), st.builds(bytes.__add__, VALID, MESSAGE)))
def test_made_up_messages_are_taken_as_the_official_parser_takes_them(data: bytes) -> None:
    assert ours(data) == official(data)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    VALID, st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=3), st.integers(0, 9)
)
def test_damaged_messages_are_taken_as_the_official_parser_takes_them(
    data: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    damaged = bytearray(data[: len(data) - cut])
    for place, value in changes:
        if damaged:
            damaged[place % len(damaged)] = value
    assert ours(bytes(damaged)) == official(bytes(damaged))


def test_a_large_message_is_parsed_alike() -> None:
    message = pb.RerankRequest(history=pb.ItemIds(ints=range(-50_000, 50_000)), candidates=pb.ItemIds(ints=range(1024)))
    assert ours(message.SerializeToString()) == official(message.SerializeToString())

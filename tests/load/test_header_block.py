"""Header blocks, held against RFC 7541: its encoding of lengths and its static table."""

from __future__ import annotations

import grpc
import pytest

from gr2.load.header_block import call_headers, status_of

STATIC = {1: ":authority", 3: ":method POST", 4: ":path", 6: ":scheme http", 23: "authorization", 31: "content-type"}


def number(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """The integer at a place, by the prefix of so many bits (section 5.1), and where it ends."""
    most = (1 << bits) - 1
    value, at = block[at] & most, at + 1
    if value == most:
        shift = 0
        while True:
            value += (block[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if block[at - 1] < 128:
                break
    return value, at


def text(block: bytes, at: int) -> tuple[str, int]:
    assert not block[at] & 128, "Huffman's code"
    size, at = number(block, at, 7)
    return block[at : at + size].decode(), at + size


def fields(block: bytes) -> list[tuple[str, str, bool]]:
    """Name and value of each field, and whether it must never be indexed (section 6)."""
    at, found = 0, []
    while at < len(block):
        first = block[at]
        if first & 128:
            index, at = number(block, at, 7)
            name, _, value = STATIC[index].partition(" ")
            found.append((name, value, False))
            continue
        assert not first & 0xE0, "neither indexing nor a new size of the table"
        index, at = number(block, at, 4)
        name, at = (STATIC[index], at) if index else text(block, at)
        value, at = text(block, at)
        found.append((name, value, bool(first & 16)))
    return found


@pytest.mark.parametrize("length", [1, 118, 119, 120, 246, 247, 5000])
def test_a_call_has_the_headers_of_grpc_and_its_token_is_never_indexed(length: int) -> None:
    token = "t" * length
    assert fields(call_headers("host:1", "/service/method", token) + b"00000100u") == [
        (":method", "POST", False),
        (":scheme", "http", False),
        (":path", "/service/method", False),
        (":authority", "host:1", False),
        ("te", "trailers", False),
        ("content-type", "application/grpc", False),
        ("authorization", f"Bearer {token}", True),
        ("grpc-timeout", "00000100u", False),
    ]


def test_a_call_without_a_token_has_no_authorization() -> None:
    names = [name for name, _, _ in fields(call_headers("host:1", "/service/method") + b"00000100u")]
    assert "authorization" not in names


def test_a_status_is_read_from_trailers() -> None:
    assert status_of(b"\x00\x0cgrpc-message\x02no\x00\x0bgrpc-status\x0214") == 14
    assert status_of(b"\x00\x0cgrpc-message\x02no") == grpc.StatusCode.UNKNOWN.value[0]
    assert status_of(b"\x00\x0bgrpc-status\x01x") == grpc.StatusCode.UNKNOWN.value[0]

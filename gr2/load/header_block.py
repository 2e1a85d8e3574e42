"""The header blocks of a gRPC call, without a dynamic table and without Huffman's code: RFC 7541.

Indices are those of its appendix A.
"""

from __future__ import annotations

import grpc

__all__ = ["call_headers", "status_of"]

UNKNOWN: int = grpc.StatusCode.UNKNOWN.value[0]


def call_headers(authority: str, method: str, token: str = "") -> bytes:
    """The header block of each call of a method, up to the nine letters of its timeout, which are the caller's."""
    # Marked never to be indexed, by whatever is between.
    bearer = b"\x1f\x08" + _text(f"Bearer {token}") if token else b""
    return b"".join(
        (
            b"\x83\x86",  # :method POST, :scheme http
            b"\x04" + _text(method),  # :path
            b"\x01" + _text(authority),  # :authority
            b"\x00" + _text("te") + _text("trailers"),
            b"\x0f\x10" + _text("application/grpc"),  # content-type
            bearer,  # authorization
            b"\x00" + _text("grpc-timeout") + b"\x09",
        )
    )


def status_of(block: bytes) -> int:
    """The status code in the trailers' block, whose names are literal."""
    at = block.find(b"grpc-status")
    if at < 0:
        return UNKNOWN
    size = block[at + 11]
    digits = block[at + 12 : at + 12 + size]
    return int(digits) if digits.isdigit() else UNKNOWN


def _text(value: str) -> bytes:
    """A string literal: its length, in as many bytes as that takes (section 5.1), and its letters."""
    data = value.encode("ascii")
    if len(data) < 127:
        return bytes((len(data),)) + data
    length, rest = [127], len(data) - 127
    while rest >= 128:
        length.append(128 | rest & 127)
        rest >>= 7
    return bytes((*length, rest)) + data

"""The options of commands that call a server: how to reach it, and who calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gr2.client import Client

__all__ = ["CaFile", "CertFile", "KeyFile", "Token", "connect"]

CaFile = Annotated[str, typer.Option("--ca", help="TLS: the authority of the server's certificate, a PEM file.")]
CertFile = Annotated[str, typer.Option("--cert", help="TLS: this caller's certificate, a PEM file.")]
KeyFile = Annotated[str, typer.Option("--key", help="TLS: the certificate's key, a PEM file.")]
# A token given as an argument would be seen by everybody on the machine.
Token = Annotated[str, typer.Option(envvar="GR2_TOKEN", help="The token that the server asks for.", show_default=False)]


def connect(address: str, ca: str, cert: str, key: str, token: str) -> Client:
    """A client by these options. Raises OSError if a file cannot be read."""
    from gr2.client import Client

    return Client(address, ca=ca, cert=cert, key=key, token=token)

"""`gr2 info`: what a server says of itself."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from gr2.cli.connection import CaFile, CertFile, KeyFile, Token, connect

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `info` to the application."""
    app.command("info", rich_help_panel="Serve")(info)


def info(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The server's address.")] = "127.0.0.1:50051",
    reload: Annotated[bool, typer.Option("--reload", help="Have it look for new versions first.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the server.")] = 60.0,
    ca: CaFile = "",
    cert: CertFile = "",
    key: KeyFile = "",
    token: Token = "",
) -> None:
    """Print a server's bundles, versions, limits and health as JSON.

    After a new version was put into its repository, have it served without waiting for the next look:

        gr2 info 127.0.0.1:50051 --reload
    """
    from google.protobuf.json_format import MessageToDict

    with connect(address, ca, cert, key, token) as client:
        found = client.server_info(reload=reload, timeout=timeout)
    typer.echo(json.dumps(MessageToDict(found, preserving_proto_field_name=True), indent=2, ensure_ascii=False))

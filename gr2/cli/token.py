"""`gr2 token`: a token for a caller of the server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `token` to the application."""
    app.command("token", rich_help_panel="Serve")(token)


def token(
    name: Annotated[str, typer.Argument(help="The client's name; letters, digits, dots, dashes, underscores.")],
    file: Annotated[Path | None, typer.Option(help="The token file to add the client to.")] = None,
) -> None:
    """Print a new token, once, and its line for the file of `gr2 serve --tokens`, or add the line to that file.

    The file holds the token's hash only. A running server reads it again within a second.

        gr2 token ranker-a --file tokens.txt
    """
    from gr2.artifact import write_atomic
    from gr2.serving.access.tokens import make_token

    secret, line = make_token(name)
    if file is not None:
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        separator = "" if not before or before.endswith("\n") else "\n"
        write_atomic(file, f"{before}{separator}{line}\n".encode())
    typer.echo(secret)
    if file is None:
        typer.echo(line)

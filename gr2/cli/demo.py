"""`gr2 demo`: the whole path on a synthetic shop."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gr2.interrupts import interrupts_wait

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `demo` to the application."""
    app.command("demo", rich_help_panel="Begin here")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Where data, artefacts and bundle go; a second run finds them.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Show the whole path on a synthetic shop: data, every stage, a server, one request over gRPC, the metrics.

    A few minutes on two cores; a second run in the same folder only serves and asks.

        gr2 demo
        gr2 demo --out /data/gr2-demo
    """
    try:
        with interrupts_wait():
            from gr2.demo import run_demo
        run_demo(out)
    except KeyboardInterrupt:
        print("interrupted: what was done is kept; the same command goes on from there", file=sys.stderr)
        raise typer.Exit(130) from None

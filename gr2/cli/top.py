"""`gr2 top`: a live server in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `top` to the application."""
    app.command("top", rich_help_panel="Serve")(top)


def top(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Where the server shows its metrics.")
    ] = "http://127.0.0.1:9090/metrics",
    interval: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two looks.")] = 1.0,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Looks before the end.", show_default="until Ctrl-C")
    ] = None,
) -> None:
    """Watch a running server: requests, errors, latency, phases, queue, bundles.

    The server must show its metrics:

        gr2 serve --bundle runs/shop/export --metrics-port 9090
        gr2 top http://127.0.0.1:9090/metrics
    """
    from rich.console import Console
    from rich.live import Live

    from gr2.top import watch

    console = Console()
    screens = watch(url, interval, rounds)
    try:
        if not console.is_terminal:
            for screen in screens:
                console.print(screen)
            return
        with Live(console=console, auto_refresh=False) as live:
            for screen in screens:
                live.update(screen, refresh=True)
    except KeyboardInterrupt:
        return

"""`gr2 serve`: a bundle behind gRPC."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `serve` to the application."""
    app.command("serve", rich_help_panel="Serve")(serve)


def serve(
    bundle: Annotated[Path, typer.Option(help="The folder that `gr2 export` wrote, or one of NAME/VERSION/ folders.")],
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free port.")] = 50051,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Requests handled at once.", show_default="the cores and one more")
    ] = None,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; more are refused at once.")] = 64,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, or auto: a GPU if it can be used, else the CPU and a line that says why.")
    ] = "cpu",
    batch: Annotated[int, typer.Option(min=1, help="On a GPU: the most requests of a batch.")] = 64,
    batch_delay: Annotated[
        float, typer.Option(min=0, help="On a GPU: microseconds that a request waits for others.")
    ] = 500.0,
    default: Annotated[str, typer.Option(help="Of several bundles, the one of requests that name none.")] = "",
    poll: Annotated[
        float, typer.Option(min=0, help="Seconds between two looks for a new version of a bundle; 0 for none.")
    ] = 2.0,
    grace: Annotated[float, typer.Option(min=0, help="Seconds to finish accepted requests when stopped.")] = 10.0,
) -> None:
    """Serve a bundle over gRPC until SIGTERM or Ctrl-C. Needs the base install only, no torch.

    Once it answers, one line of JSON on standard output says so and tells the address.

    Health checks and reflection are on the same port.

        gr2 serve --bundle runs/shop/export --port 50051
    """
    from gr2.serving.batcher import BatchLimits
    from gr2.serving.server import serve as run_server

    batches = BatchLimits(batch, batch_delay, max(BatchLimits.queue, batch))
    run_server(
        bundle,
        host=host,
        port=port,
        threads=threads,
        queue=queue,
        grace=grace,
        device=device,
        batches=batches,
        default=default,
        poll=poll,
    )

"""`gr2 bench`: how a server bears load."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gr2.cli.connection import CaFile, CertFile, KeyFile
from gr2.errors import ConfigError, DataError, Gr2Error
from gr2.interrupts import interrupts_wait

if TYPE_CHECKING:
    from gr2.load.summary import Summary

__all__ = ["app"]

LEAST_DRAWN, MOST_DRAWN = 20_000, 200_000

app = typer.Typer(no_args_is_help=True, help="Measure a running server.")


@app.callback()
def bench() -> None:
    """Measure a running server."""


@app.command()
def serve(
    address: Annotated[str, typer.Option(help="HOST:PORT, or any gRPC target.")] = "127.0.0.1:50051",
    bundle: Annotated[Path | None, typer.Option(help="Draw requests from this bundle's catalogue.")] = None,
    requests: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Send these: a JSON object a line, as `gr2 rerank` takes it.")
    ] = None,
    rate: Annotated[
        list[float] | None, typer.Option(help="Open loop: requests a second, Poisson. May be given several times.")
    ] = None,
    concurrency: Annotated[
        list[int] | None, typer.Option(help="Closed loop: callers. May be given several times.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Length of each step.")] = 10.0,
    warmup: Annotated[float, typer.Option(help="Seconds before each that do not count.")] = 2.0,
    deadline_ms: Annotated[float, typer.Option(help="Deadline of a request, from when it was due.")] = 1000.0,
    history: Annotated[int, typer.Option(help="Drawn requests: history items.")] = 50,
    candidates: Annotated[int, typer.Option(help="Drawn requests: candidates.")] = 50,
    users: Annotated[int, typer.Option(min=0, help="Drawn requests: users in all; 0, a new one each time.")] = 0,
    processes: Annotated[int, typer.Option(help="Processes that send.")] = 1,
    connections: Annotated[int, typer.Option(help="Connections of each.")] = 1,
    pin: Annotated[str, typer.Option(metavar="CPUS", help="CPUs to send from, such as 1 or 2,3.")] = "",
    ca: CaFile = "",
    cert: CertFile = "",
    key: KeyFile = "",
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same requests and arrivals.")] = 0,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where bench.json and bench.png go.")] = Path("bench"),
) -> None:
    """Measure a server's latency and capacity.

    In an open loop latency counts from when a request was due: waiting behind a slow answer is not left out.

    Without --rate and --concurrency, one and eight callers show the capacity; open loops follow at 30 to 90 % of it.

    A step in which the load generator was the bottleneck is refused. The picture needs the extra `plot`.

    A token for the server is taken from the environment variable GR2_TOKEN.

        gr2 bench serve --bundle runs/shop/export
        gr2 bench serve --bundle runs/shop/export --rate 200 --rate 400 --deadline-ms 50 --pin 1
        gr2 bench serve --requests logged.jsonl --concurrency 16
    """
    with interrupts_wait():
        from gr2.load.plan import Plan, run_plan
        from gr2.load.step import Generator

    plan = Plan(rate or (), concurrency or (), seconds, warmup, deadline_ms / 1e3)
    generator = Generator(processes, connections, _cpus(pin), tls=(ca, cert, key))
    if (bundle is None) == (requests is None):
        raise ConfigError("give --bundle DIR to draw requests from, or --requests FILE to send, one of the two")
    shape: dict[str, Any] = {"history": history, "candidates": candidates, "users": users, "seed": seed}
    if requests is not None:
        frames, shape = _read(requests), {"file": str(requests), "seed": seed}
    else:
        assert bundle is not None
        frames = _draw(bundle, min(MOST_DRAWN, max(LEAST_DRAWN, plan.longest())), shape)
    settings = {**shape, "processes": processes, "connections": connections, "pin": pin, "requests": len(frames)}
    summaries: list[Summary] = []
    try:
        summaries.extend(run_plan(address, frames, plan, generator=generator, seed=seed))
    finally:
        # An interrupt, or a server that is gone, leaves what was measured before.
        if summaries:
            _show(summaries, address, settings, out)
    if any(summary.refused for summary in summaries):
        raise Gr2Error("the load generator was the bottleneck of a step: its latencies are not reported")


def _show(summaries: list[Summary], address: str, settings: dict[str, Any], out: Path) -> None:
    # All of it takes a second, most of that to import what draws.
    with interrupts_wait():
        from rich.console import Console

        from gr2.load.plan import write_results
        from gr2.load.table import load_table, phase_table

        console = Console()
        console.print(load_table(summaries, address))
        if (phases := phase_table(summaries)) is not None:
            console.print(phases)
        for path in write_results(out, address, summaries, settings):
            print(path, file=sys.stderr)


def _draw(bundle: Path, count: int, shape: dict[str, Any]) -> list[bytes]:
    from gr2.bundle import Bundle
    from gr2.load.requests import draw_requests

    return draw_requests(Bundle.load(bundle), count, **shape)


def _read(path: Path) -> list[bytes]:
    from gr2.cli.request import parse_request
    from gr2.load.requests import encode_request

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the requests: {error}", path=path) from error
    frames = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            asked = parse_request(line, f"{path}, line {number}")
            features = [value for row in asked.features or () for value in row]
            frames.append(
                encode_request(
                    list(asked.history),
                    list(asked.candidates),
                    scores=asked.scores or (),
                    features=features,
                    top_n=asked.top_n,
                )
            )
    return frames


def _cpus(text: str) -> list[int]:
    try:
        wanted = [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"--pin must be CPU numbers with commas between, got {text!r}") from error
    allowed = os.sched_getaffinity(0)
    if not allowed.issuperset(wanted):
        raise ConfigError(f"--pin: this process may run on the CPUs {','.join(map(str, sorted(allowed)))}, got {text}")
    return wanted

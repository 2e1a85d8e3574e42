"""`gr2 encode`: semantic IDs for a catalogue of any size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gr2.cli.stages import Config, Set
from gr2.interrupts import interrupts_wait
from gr2.pipeline import load_plan, run_lock

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `encode` to the application."""
    app.command("encode", rich_help_panel="One stage alone")(encode)


def encode(
    config: Config,
    items: Annotated[
        list[Path], typer.Argument(metavar="ITEMS...", help="Parquet files, or folders of them.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write.", show_default="encode in the run")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="A Ray cluster that this machine is part of; all must see the run, ITEMS and --out."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes, a core each.", show_default="all cores")
    ] = None,
    overrides: Set = None,
) -> None:
    """Give semantic IDs to a catalogue of any size, by the codes that `gr2 tokenize` has learnt.

    The items that it learnt from keep their IDs. ITEMS have `item_id`, and `vector` (a list of numbers) if the codes
    were learnt from vectors, else the columns of text that items.parquet has. Needs the extra `scale` (Ray), and starts
    and stops a Ray of its own.

        gr2 encode configs/shop.toml catalogue/
        gr2 encode configs/shop.toml catalogue/ --address auto --workers 100 --out /shared/codes
    """
    plan = load_plan(config, overrides=overrides or (), only=["tokenize"])
    wanted = plan.steps[0].config
    from gr2.artifact import Artifact

    try:
        with interrupts_wait():
            from gr2.tokenizer.bulk.cluster import ray_pool
            from gr2.tokenizer.bulk.encode import encode_items
        with run_lock(plan.out):
            inputs = {name: Artifact.load(plan.out / name, name, verify=True) for name in ("prepare", "tokenize")}
            gpu = inputs["tokenize"].config["vectors"] is None and wanted.device != "cpu"
            made = encode_items(
                inputs,
                items,
                plan.out / "encode" if out is None else out,
                workers=ray_pool(workers, address=address, gpu=gpu),
                device=wanted.device,
                batch_size=wanted.batch_size,
            )
    except KeyboardInterrupt:
        _say("interrupted: what was done is kept; the same command goes on from there")
        raise typer.Exit(130) from None
    _say(
        "{added:,} items added, {items:,} in all, {unique:.2%} with an ID of their own, {overflow:,} not in their "
        "nearest prefix; {items_per_second:,.0f} items a second".format_map(made.metrics)
    )
    _say(str(made.path))


def _say(line: str) -> None:
    print(f"encode: {line}", file=sys.stderr, flush=True)

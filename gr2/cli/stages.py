"""`gr2 run` and one command a stage."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gr2.artifact import Artifact
from gr2.errors import ConfigError
from gr2.pipeline import STAGES, Outcome, execute, load_plan, run_lock, show, summarize

__all__ = ["register"]

ABOUT = {
    "prepare": "Read items and interactions, keep the k-core, and order every user's events.",
    "prerank": "Train the pre-ranker, or import another's lists, and write the candidate lists.",
    "sft": "Fine-tune the mid-trained model on traces, and re-rank the test lists with it.",
    "compress": "Let a model learn to shorten histories so that a reasoner ranks as well from what is left.",
    "opd": "Let a teacher judge every token of a reasoner's own answers (on-policy distillation).",
    "rl": "Let a reasoner learn to re-rank by trying, with rewards that can be verified.",
    "bypass": "Let it learn to rank without reasoning first.",
    "distill": "Train the student that re-orders a slate.",
    "export": "Write the serving bundle, and check that it answers as the student does.",
    "evaluate": "Re-rank the test lists with the exported bundle and compare with the incoming order.",
}
# Stages that several processes may work at.
LAUNCHED = ("sft", "compress", "opd", "rl", "bypass")
Config = Annotated[
    Path, typer.Argument(metavar="CONFIG.toml", help="One table a stage, and \\[run] with `out` and `seed`.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override one key; may be repeated.")
]
Force = Annotated[bool, typer.Option("--force", help="Run even what is up to date, and from the start.")]


def register(app: typer.Typer) -> None:
    """Add `run` and the stages to the application."""
    app.command("run", rich_help_panel="Train")(run)
    for name in STAGES:
        if name == "tokenize":
            app.command(name, rich_help_panel="One stage alone")(tokenize)
        elif name == "traces":
            app.command(name, rich_help_panel="One stage alone")(traces)
        elif name == "midtrain":
            app.command(name, rich_help_panel="One stage alone")(midtrain)
        else:
            _register_stage(app, name)


def run(
    config: Config,
    first: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Start at this stage.")] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Only this stage; may be repeated.")] = None,
    force: Force = False,
    overrides: Set = None,
) -> None:
    """Run every stage that is not up to date: prepare, prerank, tokenize, distill, export, evaluate.

    A run that was killed goes on where it was. Paths in the file are relative to the current directory.

        gr2 run configs/beauty.toml
        gr2 run configs/beauty.toml --set distill.epochs=3 --set run.out=runs/short
        gr2 run configs/beauty.toml --from export --force
    """
    _run(config, overrides or (), first=first, only=only or (), force=force)


def tokenize(
    config: Config,
    add: Annotated[
        Path | None, typer.Option(metavar="ITEMS", help="Give IDs to these new items; no other ID changes.")
    ] = None,
    force: Force = False,
    overrides: Set = None,
) -> None:
    """Learn the items' semantic IDs from their text, or give IDs to new items by what was learnt.

    gr2 tokenize configs/beauty.toml
    gr2 tokenize configs/beauty.toml --add new_items.parquet
    """
    if add is None:
        _run(config, overrides or (), only=["tokenize"], force=force)
        return
    if force:
        raise ConfigError("--add changes no ID that exists, so there is nothing to --force; leave one of them out")
    plan = load_plan(config, overrides=overrides or (), only=["tokenize"])
    from gr2.tokenizer.add import add_items

    with run_lock(plan.out):
        inputs = {name: Artifact.load(plan.out / name, name, verify=True) for name in ("prepare", "tokenize")}
        made = add_items(inputs, add, plan.out / "tokenize-add", plan.steps[0].config)
    drift = made.metrics["drift"]
    _say(
        "tokenize: {added:,} items added, {passed_over:,} had an ID, {items:,} in all, {overflow:,} not in their "
        "nearest prefix".format_map(made.metrics)
        + ("" if drift is None else f"; reconstruction error {drift:.2f} times that of the first items")
    )
    if made.metrics["without_content"]:
        _say(f"tokenize: {made.metrics['without_content']:,} of them have no text, their IDs say nothing of them")
    _say(f"tokenize: {made.path}")


def traces(
    config: Config,
    ray: Annotated[bool, typer.Option("--ray", help="Share the lists among the workers of a Ray Data job.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers of the Ray job, a core each.", show_default="all cores")
    ] = None,
    address: Annotated[str | None, typer.Option(help="A Ray cluster; `auto` is the one this machine is in.")] = None,
    force: Force = False,
    overrides: Set = None,
) -> None:
    """Have a teacher re-rank training lists and say why; a killed run goes on without repeating a paid call.

    gr2 traces configs/beauty.toml
    gr2 traces configs/beauty.toml --set traces.teacher=endpoint --set traces.model=NAME
    gr2 traces configs/beauty.toml --ray --workers 16
    """
    extra = []
    if ray or workers is not None or address is not None:
        extra.append(f"traces.workers={workers or len(os.sched_getaffinity(0))}")
    if address is not None:
        extra.append(f"traces.address={json.dumps(address)}")
    _run(config, [*(overrides or ()), *extra], only=["traces"], force=force)


def midtrain(
    config: Config,
    from_scratch: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Start from nothing: tiny, small or base.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Start from the Hugging Face causal model in this folder.")
    ] = None,
    force: Force = False,
    overrides: Set = None,
) -> None:
    """Teach a language model the semantic IDs, and rank every user's next item with it.

    gr2 midtrain configs/beauty-reasoner.toml --from-scratch small
    gr2 midtrain shop.toml --model models/Qwen3-0.6B --set midtrain.lora_rank=16
    accelerate launch --multi_gpu --num_processes 2 -m gr2.cli midtrain shop.toml
    """
    if from_scratch is not None and model is not None:
        raise ConfigError("a model starts from a folder or from scratch; leave --from-scratch or --model out")
    chosen = list(overrides or ())
    if from_scratch is not None:
        chosen += [f"midtrain.from_scratch={json.dumps(from_scratch)}", 'midtrain.model=""']
    if model is not None:
        chosen.append(f"midtrain.model={json.dumps(str(model))}")
    _run_launched("midtrain", config, chosen, force=force)


def _run_launched(name: str, config: Path, overrides: Sequence[str], *, force: bool) -> None:
    """Run a stage in all processes of a launch: the first runs it, the others follow."""
    if int(os.environ.get("RANK", "0")) > 0:
        plan = load_plan(config, overrides=overrides, only=[name])
        (step,) = plan.steps
        inputs = {parent: Artifact.load(plan.out / parent, parent) for parent in step.inputs}
        step.module.follow(step.config, inputs, plan.out / name, plan.seed)
        return
    outcomes = _run(config, overrides, only=[name], force=force)
    (own,) = (outcome for outcome in outcomes if outcome.stage == name)
    if own.status != "ran" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        load_plan(config, overrides=overrides, only=[name]).steps[0].module.leave()


def _run(
    config: Path, overrides: Sequence[str], *, first: str | None = None, only: Sequence[str] = (), force: bool = False
) -> list[Outcome]:
    try:
        plan = load_plan(config, overrides=overrides, first=first, only=only)
        outcomes = execute(plan, force=force, say=_say)
    except KeyboardInterrupt:
        _say("interrupted: what was done is kept; the same command goes on from there")
        raise typer.Exit(130) from None
    path = summarize(plan, outcomes)
    show(outcomes)
    _say(f"summary: {path}")
    return outcomes


def _register_stage(app: typer.Typer, name: str) -> None:
    def command(config: Config, force: Force = False, overrides: Set = None) -> None:
        if name in LAUNCHED:
            _run_launched(name, config, overrides or (), force=force)
        else:
            _run(config, overrides or (), only=[name], force=force)

    command.__doc__ = f"{ABOUT[name]}\n\n    gr2 {name} configs/beauty.toml"
    app.command(name, rich_help_panel="One stage alone")(command)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

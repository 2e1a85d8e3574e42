"""`gr2 report`: what a run has made, for a person to judge."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from gr2 import config as configuration
from gr2.cli.stages import Config, Set
from gr2.errors import ConfigError
from gr2.interrupts import interrupts_wait
from gr2.pipeline import STAGES, Plan, load_plan

if TYPE_CHECKING:
    from gr2.artifact import Artifact

__all__ = ["app"]

TRYING = ("rl", "opd", "bypass")


class Parts(TyperGroup):
    """A group in which what names no part of a run is the run itself: `gr2 report RUN` is `gr2 report run RUN`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of the first argument, or `run`."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["run", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Parts, no_args_is_help=True, help="Report on what a run has made: `gr2 report RUN`, or one part in depth."
)


@app.command()
def run(
    target: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or its CONFIG.toml.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write.", show_default="report in the run")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests to measure the latency with.")] = 300,
    resamples: Annotated[int, typer.Option(min=100, help="Of the bootstrap of each interval.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Draws examples, requests and resamples.")] = 0,
    overrides: Set = None,
) -> None:
    """Write one page about a whole run: quality against baselines, slices, examples, latency, training, data.

    Whatever the run has not made is left out and said. Writes report.html, which needs nothing else, and report.json.

        gr2 report runs/beauty
        gr2 report configs/beauty.toml --out reports/beauty
    """
    if target.suffix == ".toml":
        target = load_plan(target, overrides=overrides or (), only=["prepare"]).out
    elif overrides:
        raise ConfigError("--set changes keys of a CONFIG.toml; give one in the place of the run's folder")
    with interrupts_wait():
        from rich.console import Console

        from gr2.report.page import write_run_report
        from gr2.report.run import Run
        from gr2.report.tables import report_table

    folder = target / "report" if out is None else out
    report = write_run_report(
        Run.load(target, tuple(STAGES)), folder, seed=seed, resamples=resamples, requests=requests
    )
    if report["quality"]:
        Console().print(report_table(report))
    for stage in report["stages"]:
        if stage["outdated"]:
            _say(f"{stage['stage']} was made from another {stage['outdated']}; `gr2 run` makes it anew")
    for part, why in report["left_out"].items():
        _say(f"{part} left out: {why}")
    _say(str(folder / "report.html"))


@app.command()
def tokenizer(
    config: Config,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write.", show_default="report-tokenizer in the run")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Items to show with their neighbours by prefix.")] = 8,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Draws these items.", show_default="the seed of the run")
    ] = None,
    overrides: Set = None,
) -> None:
    """Show how a run's semantic IDs use their codes, what shares a prefix, and what had to be told apart.

    Needs the stages prepare and tokenize. Writes tokenizer.json, tokenizer.png and the page tokenizer.html.

        gr2 report tokenizer configs/beauty.toml
        gr2 report tokenizer configs/beauty.toml --samples 20 --out reports/beauty
    """
    plan = load_plan(config, overrides=overrides or (), only=["tokenize"])
    inputs = _finished(plan)
    with interrupts_wait():
        from rich.console import Console

        from gr2.report.tables import tokenizer_tables
        from gr2.tokenizer.report_page import write_report

    folder = plan.out / "report-tokenizer" if out is None else out
    report = write_report(inputs, folder, samples=samples, seed=plan.seed if seed is None else seed)
    console = Console()
    for table in tokenizer_tables(report):
        console.print(table)
    wanted = configuration.to_json(plan.steps[0].config)
    if changed := [key for key, value in report["config"].items() if wanted[key] != value]:
        _say(f"[tokenize] {', '.join(changed)}: changed since these IDs were made; `gr2 run` makes them anew")
    _say(str(folder / "tokenizer.html"))


@app.command()
def rl(
    config: Config,
    stage: Annotated[str, typer.Option(help="Whose training: rl, opd or bypass.")] = "rl",
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write.", show_default="report-STAGE in the run")
    ] = None,
    overrides: Set = None,
) -> None:
    """Show what gives a policy away that games its reward: copies, rewards and ranks over the steps of a training.

    Needs the stage. Writes monitors.png.

        gr2 report rl configs/beauty-reasoner.toml
        gr2 report rl configs/beauty-reasoner.toml --stage bypass
    """
    if stage not in TRYING:
        raise ConfigError(f"--stage {stage}: there are {', '.join(TRYING)}")
    plan = load_plan(config, overrides=overrides or (), only=[stage])
    with interrupts_wait():
        from rich.console import Console

        from gr2.artifact import Artifact, write_atomic
        from gr2.report.tables import steps_table
        from gr2.training.policy.monitor_picture import monitor_picture, read_steps

    steps = read_steps(Artifact.load(plan.out / stage, stage, verify=True))
    folder = plan.out / f"report-{stage}" if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "monitors.png"
    write_atomic(picture, monitor_picture(steps))
    Console().print(steps_table(stage, steps))
    _say(str(picture))


def _finished(plan: Plan) -> dict[str, Artifact]:
    from gr2.artifact import Artifact

    if not plan.out.is_dir():
        raise ConfigError(
            f"[run] out: no such folder: {plan.out} (paths are relative to {Path.cwd()}); "
            "make the IDs first, by `gr2 prepare` and `gr2 tokenize`"
        )
    return {name: Artifact.load(plan.out / name, name, verify=True) for name in ("prepare", "tokenize")}


def _say(line: str) -> None:
    print(f"report: {line}", file=sys.stderr, flush=True)

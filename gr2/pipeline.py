"""The pipeline of `gr2 run`: which stages there are, what each needs, and which of them have to run."""

from __future__ import annotations

import difflib
import fcntl
import importlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gr2 import config as configuration
from gr2.artifact import Artifact, file_digest, is_begun, is_current, outdated, write_json
from gr2.errors import ArtifactError, ConfigError, MissingExtraError
from gr2.interrupts import interrupts_wait

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "STAGES",
    "Outcome",
    "Plan",
    "RunConfig",
    "Stage",
    "Step",
    "execute",
    "load_plan",
    "run_lock",
    "show",
    "summarize",
]


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline: its module, its configuration's class there, and the extra it needs, if any.

    An optional stage runs only where the configuration has its table, or where it is named.
    """

    name: str
    module: str
    config: str
    extra: str | None = None
    optional: bool = False


STAGES = {
    stage.name: stage
    for stage in (
        Stage("prepare", "gr2.data.prepare", "PrepareConfig"),
        Stage("prerank", "gr2.training.prerank", "PrerankConfig", "train"),
        Stage("tokenize", "gr2.tokenizer.tokenize", "TokenizeConfig", "train"),
        Stage("midtrain", "gr2.training.midtrain", "MidtrainConfig", "train", optional=True),
        Stage("traces", "gr2.training.traces", "TracesConfig", "train", optional=True),
        Stage("sft", "gr2.training.sft", "SftConfig", "train", optional=True),
        Stage("compress", "gr2.training.compress", "CompressConfig", "train", optional=True),
        Stage("opd", "gr2.training.opd", "OpdConfig", "train", optional=True),
        Stage("rl", "gr2.training.rl", "RlConfig", "train", optional=True),
        Stage("bypass", "gr2.training.bypass", "BypassConfig", "train", optional=True),
        Stage("distill", "gr2.training.distill", "DistillConfig", "train"),
        Stage("export", "gr2.export.bundle", "ExportConfig", "train"),
        Stage("evaluate", "gr2.evaluate", "EvaluateConfig"),
    )
}


@dataclass(frozen=True)
class RunConfig:
    """`[run]`: the folder that gets a folder for each stage, and the seed of all of them."""

    out: str
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.out.strip():
            raise ValueError("out must name a folder, got an empty text")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


@dataclass(frozen=True)
class Step:
    """A stage that was selected, with its module and its validated configuration."""

    stage: Stage
    module: ModuleType
    config: Any

    @property
    def inputs(self) -> tuple[str, ...]:
        """The stages that it reads: the module's `INPUTS`, or its `inputs(config)` where they depend on it."""
        names: tuple[str, ...] = (
            self.module.inputs(self.config) if hasattr(self.module, "inputs") else self.module.INPUTS
        )
        return names

    def parents(self, inputs: Mapping[str, Artifact]) -> dict[str, str]:
        """What the stage reads, by digest: other stages' artefacts and external files."""
        sources: dict[str, Path] = self.module.sources(self.config) if hasattr(self.module, "sources") else {}
        missing = [str(path) for path in sources.values() if not Path(path).is_file()]
        if missing:
            raise ConfigError(
                f"[{self.stage.name}] no such file: {', '.join(missing)} (paths are relative to {Path.cwd()})"
            )
        return {name: inputs[name].digest for name in self.inputs} | {
            name: file_digest(Path(path)) for name, path in sources.items()
        }


@dataclass(frozen=True)
class Plan:
    """A checked configuration: where the artefacts go, and the selected stages in order."""

    out: Path
    seed: int
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a stage: `status` is `ran`, `up to date`, `missing` or, of one that was not selected, `kept` or
    `outdated`: made from other inputs than there are now.
    """

    stage: str
    status: str
    seconds: float = 0.0
    artifact: Artifact | None = None


def load_plan(path: Path, *, overrides: Sequence[str] = (), first: str | None = None, only: Sequence[str] = ()) -> Plan:
    """The plan for the TOML file `path`: all stages, those from `first` on, or `only` those named.

    An optional stage is among all stages if the file has its table.

    Every table of a selected stage is validated before anything runs; a table that no stage reads is a ConfigError.
    """
    tables = configuration.apply_overrides(configuration.load_toml(path), overrides)
    _known("table", list(tables), ["run", *STAGES])
    _known("stage", [*([first] if first else []), *only], list(STAGES))
    table = tables.get("run", {})
    run = configuration.build(
        RunConfig, {"out": f"runs/{path.stem}", **table} if isinstance(table, dict) else table, "run"
    )
    names = list(STAGES)[list(STAGES).index(first) if first else 0 :]
    wanted = only or [name for name in names if not STAGES[name].optional or name in tables or name == first]
    selected = [STAGES[name] for name in names if name in wanted]
    modules = {stage.name: _load(stage) for stage in selected}
    steps = (
        Step(stage, module, configuration.build(getattr(module, stage.config), tables.get(stage.name, {}), stage.name))
        for stage, module in zip(selected, modules.values(), strict=True)
    )
    return Plan(Path(run.out), run.seed, tuple(steps))


def execute(plan: Plan, *, force: bool = False, say: Callable[[str], None] = print) -> list[Outcome]:
    """Run the plan's stages in order and return what became of every stage, of optional ones if there is any of it.

    A stage whose folder was made from the same inputs, configuration and seed is left as it is, unless `force`.
    A stage that was killed goes on from its last checkpoint, unless `force`. `say` gets one line an event.
    """
    outcomes: dict[str, Outcome] = {}
    with run_lock(plan.out):
        for step in plan.steps:
            outcomes[step.stage.name] = _advance(step, plan, outcomes, force=force, say=say)
    every = [outcomes.get(name) or _unselected(plan.out / name, name) for name in STAGES]
    changed = outdated({each.stage: each.artifact for each in every if each.artifact})
    for name, parent in changed.items():
        say(f"{name}: made from another {parent}; `gr2 run` makes it anew")
    every = [replace(each, status="outdated") if each.stage in changed else each for each in every]
    return [each for each in every if each.status != "missing" or not STAGES[each.stage].optional]


def summarize(plan: Plan, outcomes: Sequence[Outcome]) -> Path:
    """Write `summary.json` into the run's folder: each stage's status, seconds, digest and metrics."""
    record = {
        outcome.stage: {"status": outcome.status, "seconds": round(outcome.seconds, 3)}
        | ({"digest": outcome.artifact.digest, "metrics": outcome.artifact.metrics} if outcome.artifact else {})
        for outcome in outcomes
    }
    path = plan.out / "summary.json"
    write_json(path, {"seed": plan.seed, "stages": record})
    return path


def show(outcomes: Sequence[Outcome], console: Console | None = None) -> None:
    """Print what became of each stage and, if there is an evaluation of what the run now holds, its table."""
    from rich.console import Console

    from gr2.report.tables import evaluation_table, stages_table

    console = console or Console()
    rows = [
        (each.stage, each.status, each.seconds, each.artifact.metrics if each.artifact else {}) for each in outcomes
    ]
    console.print(stages_table(rows))
    for each in outcomes:
        if each.stage == "evaluate" and each.artifact and each.status != "outdated":
            console.print(evaluation_table(each.artifact.metrics))


def _advance(
    step: Step, plan: Plan, before: Mapping[str, Outcome], *, force: bool, say: Callable[[str], None]
) -> Outcome:
    name, out = step.stage.name, plan.out / step.stage.name
    # What this run made or found up to date was hashed then; other parents are hashed here.
    inputs = {parent: Artifact.load(plan.out / parent, parent, verify=parent not in before) for parent in step.inputs}
    _consistent(name, inputs)
    parents = step.parents(inputs)
    current = is_current(out, name, step.config, parents, plan.seed)
    partial = out.with_name(out.name + ".partial")
    if current and not force:
        say(f"{name}: up to date")
        return Outcome(name, "up to date", artifact=Artifact.load(out, name))
    if force:
        shutil.rmtree(partial, ignore_errors=True)
    again = is_begun(out, name, step.config, parents, plan.seed)
    say(f"{name}: {'taken up again' if again else 'running'}")
    began = time.monotonic()
    artifact = step.module.run(step.config, inputs, out, plan.seed)
    seconds = time.monotonic() - began
    say(f"{name}: done in {seconds:.1f} s")
    return Outcome(name, "ran", seconds, artifact)


def _consistent(name: str, inputs: Mapping[str, Artifact]) -> None:
    for child in inputs.values():
        for parent, digest in child.parents.items():
            if parent in inputs and inputs[parent].digest != digest:
                raise ArtifactError(
                    f"{name} reads {parent} and {child.stage}, but {child.path} was made from another {parent}; "
                    f"run {child.stage} again first (`gr2 run` does)"
                )


def _unselected(folder: Path, name: str) -> Outcome:
    try:
        return Outcome(name, "kept", artifact=Artifact.load(folder, name))
    except ArtifactError:
        return Outcome(name, "missing")


def _known(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"no {kind} {name!r}; {hint}")


def _load(stage: Stage) -> ModuleType:
    try:
        with interrupts_wait():
            return importlib.import_module(stage.module)
    except ImportError as error:
        if stage.extra is None or (error.name or "").partition(".")[0] == "gr2":
            raise
        raise MissingExtraError(f"the stage {stage.name!r}", stage.extra, error) from error


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the run's folder; the system lets go of it however the process ends. Raises ArtifactError if it is held."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"[run] out: {folder} is a file; give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ArtifactError(
                f"{folder}: another run is at work in this folder (process {file.read().strip() or 'unknown'}); "
                "wait for it, or give this one its own [run] out"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield

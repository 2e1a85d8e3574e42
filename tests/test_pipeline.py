"""Which stages run, which are left alone, and what a wrong configuration says before anything starts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr2.artifact import Artifact
from gr2.errors import ArtifactError, ConfigError
from gr2.pipeline import STAGES, execute, load_plan, summarize


def write_log(path: Path, seed: int = 0) -> None:
    generator = np.random.default_rng(seed)
    rows = [(user, f"i{item}") for user in range(30) for item in generator.permutation(12)[:8]]
    users, items = zip(*rows, strict=True)
    columns = {"user_id": users, "item_id": items, "timestamp": [float(row) for row in range(len(rows))]}
    pq.write_table(pa.table(columns), path)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_log(tmp_path / "log.parquet")
    path = tmp_path / "shop.toml"
    path.write_text(
        f'[run]\nout = "{tmp_path}/run"\nseed = 3\n[prepare]\ninteractions = "{tmp_path}/log.parquet"\ncore = 2\n'
    )
    return path


def lines_of(plan_arguments: dict[str, object], config: Path, *, force: bool = False) -> list[str]:
    said: list[str] = []
    execute(load_plan(config, **plan_arguments), force=force, say=said.append)  # type: ignore[arg-type]
    return [line.split(" in ")[0] for line in said]


ONLY = {"only": ["prepare"]}
RAN = ["prepare: running", "prepare: done"]


def test_a_stage_is_skipped_until_its_input_changes(config: Path) -> None:
    assert lines_of(ONLY, config) == RAN
    assert lines_of(ONLY, config) == ["prepare: up to date"]
    write_log(config.parent / "log.parquet", seed=1)
    assert lines_of(ONLY, config) == RAN
    assert lines_of(ONLY, config) == ["prepare: up to date"]


def test_a_changed_key_or_seed_runs_the_stage_again(config: Path) -> None:
    assert lines_of(ONLY, config) == RAN
    assert lines_of({**ONLY, "overrides": ["prepare.core=3"]}, config) == RAN
    assert lines_of({**ONLY, "overrides": ["prepare.core=3", "run.seed=4"]}, config) == RAN


def test_only_a_workspace_of_the_same_inputs_is_taken_up_again(config: Path) -> None:
    lines_of(ONLY, config)
    out = config.parent / "run" / "prepare"
    identity = Artifact.load(out).fingerprint
    shutil.rmtree(out)
    for left, said in ((identity, "taken up again"), ("0" * 64, "running")):
        partial = out.with_name("prepare.partial")
        partial.mkdir()
        (partial / "fingerprint").write_text(left)
        assert lines_of(ONLY, config)[0] == f"prepare: {said}"
        shutil.rmtree(out)


def test_force_runs_what_is_up_to_date_and_gives_the_same(config: Path) -> None:
    lines_of(ONLY, config)
    before = Artifact.load(config.parent / "run" / "prepare")
    assert lines_of(ONLY, config, force=True) == RAN
    assert Artifact.load(config.parent / "run" / "prepare").digest == before.digest


def test_every_stage_is_listed_in_the_summary(config: Path) -> None:
    plan = load_plan(config, only=["prepare"])
    outcomes = execute(plan)
    record = json.loads(summarize(plan, outcomes).read_text())
    assert record["seed"] == 3
    assert {name: entry["status"] for name, entry in record["stages"].items()} == {
        "prepare": "ran",
        **{name: "missing" for name, stage in list(STAGES.items())[1:] if not stage.optional},
    }
    assert record["stages"]["prepare"]["metrics"]["users"] == 30


def test_what_was_made_from_other_inputs_is_outdated(config: Path) -> None:
    short, said = ["prerank.epochs=1", "prerank.folds=2", "prerank.dim=8"], list[str]()
    execute(load_plan(config, only=["prepare", "prerank"], overrides=short))
    write_log(config.parent / "log.parquet", seed=1)
    plan = load_plan(config, only=["prepare"])
    outcomes = {each.stage: each.status for each in execute(plan, say=said.append)}
    assert (outcomes["prepare"], outcomes["prerank"]) == ("ran", "outdated")
    assert said[-1] == "prerank: made from another prepare; `gr2 run` makes it anew"


def test_a_wrong_key_of_a_late_stage_stops_the_run_before_it_begins(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[evaluate\] has no key 'slat'; did you mean 'slate'\?"):
        load_plan(config, overrides=["evaluate.slat=5"])
    assert not (config.parent / "run").exists()


def test_an_unknown_table_names_the_nearest(config: Path) -> None:
    with pytest.raises(ConfigError, match="no table 'tokenise'; did you mean 'tokenize'"):
        load_plan(config, overrides=["tokenise.levels=3"], only=["prepare"])


def test_an_unknown_stage_names_the_nearest(config: Path) -> None:
    with pytest.raises(ConfigError, match="no stage 'destill'; did you mean 'distill'"):
        load_plan(config, first="destill")


def test_a_stage_whose_files_were_damaged_runs_again_by_itself(config: Path) -> None:
    assert lines_of(ONLY, config) == RAN
    folder = config.parent / "run" / "prepare"
    before = Artifact.load(folder).digest
    (folder / "tied.npy").unlink()
    assert lines_of(ONLY, config) == RAN
    damaged = bytearray((folder / "items.npy").read_bytes())
    damaged[-1] ^= 1
    (folder / "items.npy").write_bytes(damaged)
    assert lines_of(ONLY, config) == RAN
    assert Artifact.load(folder, verify=True).digest == before


def test_a_damaged_parent_names_the_stage_to_run(config: Path) -> None:
    lines_of(ONLY, config)
    array = config.parent / "run" / "prepare" / "items.npy"
    array.write_bytes(array.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"items\.npy: missing, or altered .*; run prepare again"):
        execute(load_plan(config, only=["tokenize"]))


@pytest.mark.parametrize(
    ("seed", "wrong"), [(-1, "must not be negative"), (2**63, "must fit in 64 bits"), (10**30, "must fit in 64 bits")]
)
def test_a_seed_that_is_none_is_refused(config: Path, seed: int, wrong: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[run\] seed {wrong}, got {seed}"):
        load_plan(config, overrides=[f"run.seed={seed}"], only=["prepare"])


def test_the_largest_seed_runs(config: Path) -> None:
    assert lines_of({**ONLY, "overrides": [f"run.seed={2**63 - 1}"]}, config) == RAN


def test_a_folder_that_is_none_is_refused(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[run\] out must name a folder"):
        load_plan(config, overrides=['run.out=""'], only=["prepare"])
    with pytest.raises(ConfigError, match=r"\[run\] out: .*shop\.toml is a file; give a folder"):
        execute(load_plan(config, overrides=[f"run.out={config}"], only=["prepare"]))


def test_a_run_table_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_text("run = 3\n")
    with pytest.raises(ConfigError, match=r"\[run\] must be a table, got int"):
        load_plan(tmp_path / "shop.toml")


def test_a_missing_input_file_is_named(config: Path) -> None:
    (config.parent / "log.parquet").unlink()
    with pytest.raises(ConfigError, match=r"\[prepare\] no such file: .*log\.parquet"):
        execute(load_plan(config, only=["prepare"]))


def test_a_stage_without_its_parents_says_which(config: Path) -> None:
    with pytest.raises(ArtifactError, match="the stage prepare has not finished here"):
        execute(load_plan(config, only=["evaluate"]))


def test_the_default_folder_is_named_after_the_file(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text('[prepare]\ninteractions = "log.parquet"\n')
    plan = load_plan(path, only=["prepare"])
    assert (plan.out, plan.seed) == (Path("runs/shop"), 0)


def test_two_runs_in_one_folder_refuse_each_other(config: Path) -> None:
    lines_of(ONLY, config)
    holder = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'a+')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    lock = config.parent / "run" / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ArtifactError, match="another run is at work in this folder"):
            lines_of(ONLY, config)
        other.communicate("")
    assert lines_of(ONLY, config) == ["prepare: up to date"]


def test_from_leaves_the_stages_before_alone(config: Path) -> None:
    plan = load_plan(config, first="export")
    assert [step.stage.name for step in plan.steps] == ["export", "evaluate"]

"""`gr2 report`: what it prints, what it writes, and how it says that there is nothing to report on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from gr2.artifact import Artifact, open_stage
from gr2.catalog import Catalog
from gr2.cli.app import app
from gr2.errors import ArtifactError, ConfigError
from gr2.tokenizer.tokenize import TokenizeConfig, run

ITEMS = 60
NO_MATPLOTLIB = "import sys\nsys.modules['matplotlib'] = None\nfrom gr2.cli import main\nmain()\n"


def report(*arguments: str) -> Result:
    """The command's answer; raises what it raises."""
    answer = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["report", "tokenizer", *arguments], catch_exceptions=False)
    assert answer.exit_code == 0
    return answer


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The configuration of a run whose IDs were made from vectors; titles command a terminal."""
    np.savez(tmp_path / "own.npz", item_id=range(ITEMS), vector=np.random.default_rng(0).normal(size=(ITEMS, 6)))
    blank: list[Any] = [None] * ITEMS
    titles: list[str | None] = [f"[bold]Title {item}\x1b[2J\x9b31m" if item % 10 else None for item in range(ITEMS)]
    categories = [["Shop", f"Shelf {item % 3}\x07"] for item in range(ITEMS)]
    with open_stage(tmp_path / "run" / "prepare", "prepare", TokenizeConfig(), {}, 0) as work:
        Catalog(list(range(ITEMS)), titles, blank, categories, blank, blank).save(work.path / "items.parquet")
    prepare = Artifact.load(tmp_path / "run" / "prepare")
    config = TokenizeConfig(vectors=str(tmp_path / "own.npz"), levels=3, level_size=8)
    run(config, {"prepare": prepare}, tmp_path / "run" / "tokenize", seed=0)
    path = tmp_path / "shop.toml"
    path.write_text(
        f'[run]\nout = "{tmp_path}/run"\nseed = 4\n'
        f'[tokenize]\nvectors = "{tmp_path}/own.npz"\nlevels = 3\nlevel_size = 8\n'
    )
    return path


def test_report_is_written_into_the_run_and_shown(shop: Path) -> None:
    answer = report(str(shop))
    folder = shop.parent / "run" / "report-tokenizer"
    record = json.loads((folder / "tokenizer.json").read_text())
    assert (record["summary"]["items"], record["sample_seed"], len(record["samples"])) == (60, 4, 8)
    assert "Semantic IDs: 60 items, 3 codes of 8 values" in answer.stdout
    assert "100.00% of the IDs are unique" in answer.stdout
    assert "The largest groups that share 2 codes" in answer.stdout
    assert "4 of 8 samples" in answer.stdout
    assert answer.stderr == f"report: {folder / 'tokenizer.html'}\n"


def test_options_choose_the_folder_and_the_samples(shop: Path) -> None:
    out = shop.parent / "elsewhere" / "deep"
    report(str(shop), "--out", str(out), "--samples", "100", "--seed", "7")
    record = json.loads((out / "tokenizer.json").read_text())
    assert (record["sample_seed"], len(record["samples"])) == (7, ITEMS)
    assert not (shop.parent / "run" / "report-tokenizer").exists()
    answer = report(str(shop), "--out", str(out), "--samples", "0")
    assert "longest prefix" not in answer.stdout


def test_items_with_the_same_id_are_shown(shop: Path) -> None:
    folder = shop.parent / "run"
    config = TokenizeConfig(vectors=str(shop.parent / "own.npz"), levels=3, level_size=2, last_level="nearest")
    run(config, {"prepare": Artifact.load(folder / "prepare")}, folder / "tokenize", seed=0)
    answer = report(str(shop), "--set", "tokenize.level_size=2", "--set", "tokenize.last_level=nearest")
    assert "The largest groups that share 3 codes" in answer.stdout
    assert "changed since" not in answer.stderr


def test_control_characters_and_markup_never_reach_the_terminal(shop: Path) -> None:
    output = report(str(shop)).stdout
    assert "[bold]Title" in output
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", output)


def test_a_configuration_that_changed_since_is_named(shop: Path) -> None:
    answer = report(str(shop), "--set", "tokenize.level_size=16")
    assert (
        "report: [tokenize] level_size: changed since these IDs were made; `gr2 run` makes them anew" in answer.stderr
    )
    assert json.loads((shop.parent / "run/report-tokenizer/tokenizer.json").read_text())["config"]["level_size"] == 8


def test_a_run_that_is_not_there_is_named(shop: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such folder: \S+/none \(paths are relative to .*make the IDs first"):
        report(str(shop), "--set", f"run.out={shop.parent}/none")
    assert not (shop.parent / "none").exists()


def test_a_stage_that_has_not_finished_is_named(shop: Path) -> None:
    (shop.parent / "run" / "tokenize").rename(shop.parent / "run" / "tokenize.partial")
    with pytest.raises(ArtifactError, match=r"no artifact\.json: the stage tokenize has not finished here"):
        report(str(shop))


def test_a_damaged_file_is_named(shop: Path) -> None:
    path = shop.parent / "run" / "tokenize" / "codes.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        ArtifactError, match=r"codes\.npy: missing, or altered since it was written; run tokenize again"
    ):
        report(str(shop))
    assert not (shop.parent / "run" / "report-tokenizer").exists()


def test_help_has_an_example() -> None:
    answer = CliRunner().invoke(app, ["report", "tokenizer", "--help"], prog_name="gr2")
    assert answer.exit_code == 0
    assert " gr2 report tokenizer configs/beauty.toml " in answer.output


def test_an_install_without_the_extra_says_what_is_missing(shop: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", NO_MATPLOTLIB, "report", "tokenizer", str(shop)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 2
    assert answer.stderr.startswith("gr2: error: the picture of the code usage needs the 'train' extra")
    assert answer.stderr.count("\n") == 1

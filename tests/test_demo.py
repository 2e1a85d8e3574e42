"""The demo from the first command to the answer, on a shop of test size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gr2.artifact import Artifact
from gr2.demo import pick_example, run_demo, served
from gr2.errors import Gr2Error

SMALL = ("prerank.epochs=1", "distill.epochs=1", "distill.prior_epochs=1", "export.requests=20")


def test_demo_shows_a_ranking_and_the_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_shop: Path
) -> None:
    vectors = f"tokenize.vectors={tiny_shop.parent / 'vectors.npz'}"
    overrides = (*SMALL, vectors, "prepare.core=2")
    run_demo(tmp_path / "demo", users=150, items=60, seed=1, overrides=overrides)
    output = capsys.readouterr().out
    for shown in ("Stages", "difference", "before: the pre-ranker", "→", "gr2 serve --bundle"):
        assert shown in output
    run_demo(tmp_path / "demo", users=150, items=60, seed=1, overrides=overrides)
    assert capsys.readouterr().err.count("up to date") == 6


def test_example_is_a_slate_of_the_test_users(tiny_run: Path) -> None:
    prepare, prerank, evaluate = (Artifact.load(tiny_run / name) for name in ("prepare", "prerank", "evaluate"))
    example = pick_example(prepare, prerank, evaluate)
    assert example.target in example.candidates
    assert example.target not in example.history[-1:]
    assert len(example.scores) == len(example.candidates) == 10
    assert example.slates == evaluate.metrics["target_in_slate"]
    assert 0 < example.better + example.worse <= example.slates


def test_the_server_is_gone_after_the_block(tiny_run: Path) -> None:
    before = set(_servers())
    with served(tiny_run / "export"):
        started = set(_servers()) - before
        assert len(started) == 1
    assert not set(_servers()) & started


def test_the_server_is_gone_after_an_error(tiny_run: Path) -> None:
    before = set(_servers())
    with pytest.raises(KeyError), served(tiny_run / "export"):
        raise KeyError
    assert set(_servers()) == before


def test_a_server_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Gr2Error, match="ended with exit code 2 before it was ready"), served(tmp_path):
        pass


def _servers() -> list[str]:
    pids = (path for path in Path("/proc").iterdir() if path.name.isdigit())
    return [path.name for path in pids if _is_server(path)]


def _is_server(process: Path) -> bool:
    """True for a `gr2 serve` that this process started."""
    try:
        parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
        return parent == str(os.getpid()) and b"\0serve\0" in (process / "cmdline").read_bytes()
    except OSError:
        return False

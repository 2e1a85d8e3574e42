"""What a `make show-NAME` says of figures that were stored at another commit."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Any, Any]:
    """benchmarks.results and benchmarks.show, of a repository of two commits that differ in `code/file`."""
    monkeypatch.syspath_prepend(str(ROOT))
    results, show = importlib.import_module("benchmarks.results"), importlib.import_module("benchmarks.show")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "docs" / "results")
    git(tmp_path, "init", "-q")
    for text in ("before", "after"):
        (tmp_path / "code").mkdir(exist_ok=True)
        (tmp_path / "code" / "file").write_text(text)
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-qm", text)
    return results, show


@pytest.mark.parametrize(
    ("commit", "source", "older"),
    [
        ("HEAD", "code", False),
        ("HEAD~1", "code", True),
        ("HEAD~1+", "code", True),
        ("HEAD~1", "docs", False),
        ("HEAD~1", "", False),
        ("gone", "code", True),
    ],
)
def test_figures_of_an_older_source_are_said_to_be(
    modules: tuple[Any, Any], capsys: pytest.CaptureFixture[str], commit: str, source: str, older: bool
) -> None:
    results, show = modules
    figures = [results.Figure.judge("speed", 2, 1)]
    results.store(results.Record("some", "Some", "make some", figures, machine="m", commit=commit))
    with pytest.raises(SystemExit) as ended:
        show.show("some", "some", stored={"some": "make some"}, measures=[], source=source)
    assert not ended.value.code
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith(f'SHOW some.1 speed value="2" bar=">=1" ok stored commit={commit} date=')
    assert said.endswith(f" of an older {source}") == older

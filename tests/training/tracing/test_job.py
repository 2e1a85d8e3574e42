"""The stage `traces` as a Ray Data job, and against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gr2.artifact import Artifact, open_stage
from gr2.cli.app import app
from gr2.config import build
from gr2.errors import Gr2Error
from gr2.models.reasoner import SidSpec, from_scratch
from gr2.prompts.answer import answer_text
from gr2.prompts.render import Prompt, read_candidates
from gr2.tokenizer.bulk.cluster import ray_pool
from gr2.training.traces import TracesConfig, prepare, run


def artifacts(run_folder: Path) -> dict[str, Artifact]:
    return {name: Artifact.load(run_folder / name, name) for name in ("prepare", "tokenize", "prerank")}


def config(**changed: Any) -> TracesConfig:
    return build(TracesConfig, {"lists": "prerank"} | changed, "traces")


@pytest.fixture(scope="module")
def model(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 that knows nothing but the tokens of the semantic IDs."""
    folder = tmp_path_factory.mktemp("model")
    texts = [f"the user bought item {number} and then another" for number in range(50)]
    from_scratch("tiny", texts, SidSpec.of(Artifact.load(tiny_run / "tokenize")), seed=0).save(folder)
    return folder


@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.data\.context")
def test_workers_make_the_files_that_one_process_makes(tiny_run: Path, tmp_path: Path, chat: Any) -> None:
    pytest.importorskip("ray.data")

    def respond(call: Any) -> Any:
        items = read_candidates(Prompt(tuple(call.messages), 0, 0), 3, 8)
        return chat.completion(answer_text("They go together.", sorted(items)))

    with chat.serving(respond) as server, ray_pool(2):
        endpoint = {"teacher": "endpoint", "base_url": server.url, "model": "big", "api_key_env": "", "limit": 30}
        for name, settings in (("evidence", {}), ("endpoint", endpoint)):
            alone, shared = (
                run(
                    config(workers=workers, attempts=2, **settings),
                    artifacts(tiny_run),
                    tmp_path / f"{name}{workers}",
                    0,
                )
                for workers in (0, 2)
            )
            assert alone.metrics["accepted"] > 0
            assert alone.digest == shared.digest
    assert len(server.calls) == alone.metrics["attempts"] + shared.metrics["attempts"]


def test_what_a_worker_logged_before_it_died_is_not_asked_again(tiny_run: Path, tmp_path: Path) -> None:
    with open_stage(tmp_path / "traces", "traces", config(), {}, 0) as work:
        job = prepare(config(), artifacts(tiny_run), work, 0)
        task = {"attempt": 0, "rows": list(range(20)), "segment": "000000-0"}
        first = job(task)
        (segment,) = work.checkpoints.glob("attempts-*.jsonl")
        lines = segment.read_bytes().splitlines(keepends=True)
        segment.write_bytes(b"".join(lines[:12]) + lines[12][:9])
        assert job(task) == first
        again = (work.checkpoints / "attempts-000000-0-1.jsonl").read_bytes().splitlines(keepends=True)
        assert again == lines[12:]
        job(task)
        with pytest.raises(Gr2Error, match="3 workers died"):
            job(task)


@pytest.fixture(scope="module")
def real_server(model: Path, chat: Any) -> Iterator[str]:
    """The `base_url` of a `transformers serve` of the tiny model."""
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package, reason="needs the extra transformers[serving]")
    with chat.transformers_serve(model) as url:
        yield url


def test_a_real_server_is_asked_and_its_tokens_are_counted(
    tiny_shop: Path, tiny_run: Path, tmp_path: Path, model: Path, real_server: str
) -> None:
    keys = {"lists": "prerank", "limit": 3, "attempts": 2, "max_tokens": 24, "teacher": "endpoint", "api_key_env": ""}
    keys |= {"base_url": real_server, "model": str(model), "price_completion": 1.0, "concurrency": 2}
    inputs = artifacts(tiny_run)
    made = run(config(**keys), inputs, tmp_path / "traces", 0)
    metrics = made.metrics
    assert metrics["attempts"] == 6
    assert metrics["verdicts"]["failed"] == 0
    assert metrics["answers_without_usage"] == 0
    # The model knows nothing: it either talks on until it is cut off, or ends with what is no answer.
    assert metrics["verdicts"]["refused"] == 6
    assert metrics["prompt_tokens"] > 6 * 100
    assert 6 <= metrics["completion_tokens"] <= 6 * 24
    assert metrics["cost"] == pytest.approx(metrics["completion_tokens"] / 1e6)
    attempts = [json.loads(line) for line in made.file("attempts.jsonl").read_text().splitlines()]
    cut = [each for each in attempts if each["completion_tokens"] == 24]
    assert cut
    assert all(each["why"].startswith(("truncated", "empty")) for each in cut)


def test_the_command_shares_the_work_among_workers(tiny_shop: Path, tiny_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    result = CliRunner().invoke(app, ["traces", "--help"])
    assert result.exit_code == 0
    assert "--ray" in result.output
    assert "--address" in result.output

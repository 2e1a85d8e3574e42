"""The stage `traces`: what is kept of each teacher's answers, and what a kill leaves to do."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gr2.artifact import Artifact, is_current
from gr2.config import build
from gr2.data.dataset import Dataset
from gr2.errors import ConfigError, DataError, Gr2Error
from gr2.pipeline import execute, load_plan
from gr2.prompts.answer import answer_text
from gr2.prompts.render import Prompt, clean, read_candidates
from gr2.training.teachers import pace
from gr2.training.teachers.endpoint import FAILURES
from gr2.training.traces import TracesConfig, run
from gr2.training.tracing.table import load_traces

KEY = "sk-secret-of-the-test"
EXPLANATION = "They go together."


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.setattr(pace, "FIRST_WAIT", 0.05)


def config(**changed: Any) -> TracesConfig:
    return build(TracesConfig, {"lists": "prerank"} | changed, "traces")


def ask_server(url: str, **changed: Any) -> TracesConfig:
    keys = {"teacher": "endpoint", "base_url": url, "model": "big", "api_key_env": "TEACHER_KEY", "limit": 12}
    return config(**keys | changed)


def artifacts(run_folder: Path) -> dict[str, Artifact]:
    return {name: Artifact.load(run_folder / name, name) for name in ("prepare", "tokenize", "prerank")}


def candidates(messages: list[dict[str, str]]) -> list[tuple[int, ...]]:
    """Of a prompt, in the order it lists them."""
    return read_candidates(Prompt(tuple(messages), 0, 0), 3, 8)


def rotating(chat: Any) -> Callable[[Any], Any]:
    """A teacher that puts another candidate first each time it sees a prompt: it needs as many attempts as the rank."""
    seen: Counter[str] = Counter()

    def respond(call: Any) -> Any:
        prompt = json.dumps(call.messages)
        items = candidates(call.messages)
        turn = seen[prompt] % len(items)
        seen[prompt] += 1
        return chat.completion(answer_text(EXPLANATION, items[turn:] + items[:turn]))

    return respond


def attempts_of(artifact: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in artifact.file("attempts.jsonl").read_text().splitlines()]


def test_the_evidence_teacher_makes_traces_that_put_the_target_first(tiny_run: Path, tmp_path: Path) -> None:
    made = run(config(), artifacts(tiny_run), tmp_path / "traces", 3)
    traces = load_traces(made.file("traces.parquet"))
    metrics = made.metrics
    assert len(traces) == metrics["accepted"] > 20
    for trace in traces:
        assert trace.candidates[trace.ranking[0]] == trace.target
        assert sorted(trace.ranking) == list(range(len(trace.candidates)))
        assert trace.explanation.startswith("Pattern: ")
        assert trace.sampling == "rejection"
        assert 1 <= trace.attempts <= 4
    by_rank = metrics["acceptance_by_incoming_rank"]
    assert sum(each["lists"] for each in by_rank.values()) == metrics["lists"]
    assert sum(each["accepted"] for each in by_rank.values()) == metrics["accepted"]
    attempts = attempts_of(made)
    assert len(attempts) == metrics["attempts"] == sum(metrics["verdicts"].values())
    assert Counter(each["verdict"] for each in attempts)["accepted"] == len(traces)
    assert not any(each["why"].startswith("untrue") for each in attempts)


def test_equal_inputs_give_equal_files_and_another_seed_others(tiny_run: Path, tmp_path: Path) -> None:
    first, second, other = (
        run(config(limit=60), artifacts(tiny_run), tmp_path / name, seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.digest == second.digest != other.digest


def test_targeted_sampling_takes_one_attempt(tiny_run: Path, tmp_path: Path) -> None:
    made = run(config(sampling="targeted"), artifacts(tiny_run), tmp_path / "traces", 0)
    traces = load_traces(made.file("traces.parquet"))
    assert made.metrics["verdicts"]["rejected"] == 0
    assert made.metrics["attempts"] == made.metrics["lists"]
    assert len(traces) > 0.5 * made.metrics["lists"]
    assert {trace.attempts for trace in traces} == {1}
    assert all(trace.candidates[trace.ranking[0]] == trace.target for trace in traces)


def test_without_reasoning_there_is_a_ranking_alone(tiny_run: Path, tmp_path: Path) -> None:
    made = run(config(reasoning=False, limit=40), artifacts(tiny_run), tmp_path / "traces", 0)
    traces = load_traces(made.file("traces.parquet"))
    assert traces
    assert {trace.explanation for trace in traces} == {""}


def test_rejection_asks_until_the_target_is_first(tiny_run: Path, tmp_path: Path, chat: Any) -> None:
    with chat.serving(rotating(chat)) as server:
        made = run(
            ask_server(server.url, attempts=3, price_prompt=1.0, price_completion=5.0),
            artifacts(tiny_run),
            tmp_path / "traces",
            0,
        )
    traces = load_traces(made.file("traces.parquet"))
    for trace in traces:
        assert trace.attempts == trace.candidates.index(trace.target) + 1
        assert trace.explanation == EXPLANATION
    ranks = made.metrics["acceptance_by_incoming_rank"]
    assert all((each["share"] == 1.0) == (int(rank) <= 3) for rank, each in ranks.items())
    calls = len(server.calls)
    assert calls == made.metrics["attempts"]
    assert (made.metrics["prompt_tokens"], made.metrics["completion_tokens"]) == (100 * calls, 20 * calls)
    assert made.metrics["cost"] == pytest.approx(calls * (100 * 1.0 + 20 * 5.0) / 1e6)
    assert not any("next purchase is known" in call.messages[-1]["content"] for call in server.calls)


def test_targeted_shows_the_target(tiny_run: Path, tmp_path: Path, chat: Any) -> None:
    def respond(call: Any) -> Any:
        hint = call.messages[-1]["content"].rpartition("next purchase is known: ")[2]
        items = candidates(call.messages)
        target = next(item for item in items if answer_text(None, [item])[22:-3] in hint)
        return chat.completion(answer_text(EXPLANATION, [target, *(item for item in items if item != target)]))

    with chat.serving(respond) as server:
        made = run(ask_server(server.url, sampling="targeted"), artifacts(tiny_run), tmp_path / "traces", 0)
    assert made.metrics["acceptance"] == 1.0
    assert len(server.calls) == 12


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda items: "I would rather not.", "not-json"),
        (lambda items: '{"explanation": "x", "recommendations": [', "truncated"),
        (lambda items: answer_text(EXPLANATION, items[:-1]), "incomplete"),
        (lambda items: answer_text(EXPLANATION, [*items[:-1], (7, 7, 7)]), "not-a-candidate"),
        (lambda items: answer_text(EXPLANATION, [items[0], *items[:-1]]), "duplicate"),
        (
            lambda items: answer_text("As <|sid_begin|><s_a_7><s_b_7><s_c_7><|sid_end|> goes.", items),
            "unknown-citation",
        ),
        (lambda items: answer_text(f"{EXPLANATION}<|im_end|>", items), "stray-token"),
    ],
)
def test_an_answer_that_cannot_be_used_is_refused_with_its_reason(
    tiny_run: Path, tmp_path: Path, chat: Any, answer: Callable[[list[Any]], str], reason: str
) -> None:
    def respond(call: Any) -> Any:
        return chat.completion(answer(candidates(call.messages)))

    with chat.serving(respond) as server:
        made = run(ask_server(server.url, attempts=2, limit=3), artifacts(tiny_run), tmp_path / "traces", 0)
    assert made.metrics["verdicts"] == {"accepted": 0, "rejected": 0, "refused": 6, "failed": 0}
    assert made.metrics["reasons"] == {reason: 6}
    assert all(each["answer"] and each["why"].startswith(reason) for each in attempts_of(made))
    assert load_traces(made.file("traces.parquet")) == []


def test_a_title_that_no_prompt_showed_is_refused(tiny_run: Path, tmp_path: Path, chat: Any) -> None:
    catalog = Dataset.load(artifacts(tiny_run)["prepare"].path).catalog
    titles = [title for title in map(clean, catalog.title) if len(title.split()) >= 4]

    def respond(call: Any) -> Any:
        unseen = next(title for title in titles if title not in call.messages[-1]["content"])
        return chat.completion(answer_text(f"They will want {unseen}.", candidates(call.messages)))

    with chat.serving(respond) as server:
        settings = ask_server(server.url, attempts=1, limit=3, title_words=0)
        made = run(settings, artifacts(tiny_run), tmp_path / "traces", 0)
    assert made.metrics["reasons"] == {"unknown-title": 3}


def test_a_truncated_answer_is_refused_even_if_it_reads_well(tiny_run: Path, tmp_path: Path, chat: Any) -> None:
    def respond(call: Any) -> Any:
        return chat.completion(answer_text(EXPLANATION, candidates(call.messages)), finish="length")

    with chat.serving(respond) as server:
        made = run(ask_server(server.url, attempts=1, limit=3), artifacts(tiny_run), tmp_path / "traces", 0)
    assert made.metrics["reasons"] == {"truncated": 3}


def test_an_answer_without_content_is_counted_with_its_cost(tiny_run: Path, tmp_path: Path, chat: Any) -> None:
    with chat.serving(lambda call: chat.completion(None, finish="length", tokens=(1000, 200))) as server:
        settings = ask_server(server.url, attempts=1, limit=3, price_prompt=2.0, price_completion=10.0)
        metrics = run(settings, artifacts(tiny_run), tmp_path / "traces", 0).metrics
    assert (metrics["prompt_tokens"], metrics["completion_tokens"]) == (3000, 600)
    assert metrics["cost"] == pytest.approx(0.012)


def test_the_key_is_in_no_file(tiny_run: Path, tmp_path: Path, chat: Any) -> None:
    with chat.serving(lambda call: chat.completion(f"Authorization: Bearer {KEY}")) as server:
        made = run(ask_server(server.url, limit=3, attempts=1), artifacts(tiny_run), tmp_path / "traces", 0)
    files = [path for path in made.path.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert not any(KEY.encode() in path.read_bytes() for path in files)


def test_a_stage_that_is_not_answered_goes_on_where_it_was(tiny_run: Path, tmp_path: Path, chat: Any) -> None:
    settings = {"attempts": 1, "retries": 0, "concurrency": 1}

    def respond(call: Any) -> Any:
        return rotating(chat)(call) if call.number < 5 else chat.Response(500)

    with chat.serving(respond) as server:
        server.respond = respond
        with pytest.raises(Gr2Error, match=r"7 of 12 lists were not answered.*server-error.*same command goes on"):
            run(ask_server(server.url, **settings), artifacts(tiny_run), tmp_path / "traces", 0)
        first = [json.dumps(call.messages) for call in server.calls[:5]]
        server.calls.clear()
        server.respond = rotating(chat)
        # How it is asked may change without asking anew.
        changed = settings | {"concurrency": 3, "timeout": 5.0, "retries": 1}
        made = run(ask_server(server.url, **changed), artifacts(tiny_run), tmp_path / "traces", 0)
        again = [json.dumps(call.messages) for call in server.calls]
    assert len(again) == 7
    assert not set(first) & set(again)
    assert made.metrics["verdicts"]["failed"] == 0
    assert made.metrics["attempts"] == 12


def test_how_it_is_asked_does_not_make_a_stage_out_of_date(tiny_run: Path, tmp_path: Path) -> None:
    inputs = artifacts(tiny_run)
    made = run(config(limit=10), inputs, tmp_path / "traces", 0)
    for changed, current in (({"concurrency": 99, "workers": 2}, True), ({"temperature": 0.5}, False)):
        assert is_current(made.path, "traces", config(limit=10, **changed), made.parents, 0) == current


def test_a_server_that_is_gone_stops_the_stage(tiny_run: Path, tmp_path: Path, chat: Any) -> None:
    with pytest.raises(Gr2Error, match=f"{FAILURES} requests in a row"):
        run(ask_server(chat.closed_port(), limit=60, retries=0), artifacts(tiny_run), tmp_path / "traces", 0)


def toml(folder: Path, shop: Path, **keys: Any) -> Path:
    """The tiny shop's configuration with a table of traces."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in keys.items()]
    path = folder / "shop.toml"
    path.write_text(f"{shop.read_text()}\n[traces]\n{chr(10).join(lines)}\n")
    return path


def command(path: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "gr2.cli", "traces", str(path), "--set", f"run.out={out}", *more]


def test_a_kill_repeats_no_paid_call(tiny_shop: Path, tiny_run: Path, tmp_path: Path, chat: Any) -> None:
    """SIGKILL after eleven answers, three more calls under way: the next run asks for those and for what is left."""
    out, paid = tmp_path / "run", 11
    shutil.copytree(tiny_run, out)
    teacher, never = rotating(chat), threading.Event()

    def respond(call: Any) -> Any:
        return teacher(call) if call.number < paid else chat.Response(until=never)

    with chat.serving(respond) as server:
        keys = {"teacher": "endpoint", "base_url": server.url, "model": "big", "lists": "prerank", "limit": 40}
        path = toml(tmp_path, tiny_shop, **keys, attempts=1, concurrency=3, api_key_env="TEACHER_KEY")
        log = out / "traces.partial" / "checkpoints"
        with subprocess.Popen(command(path, out), stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 120
            while lines(log) < paid and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert lines(log) == paid
        before = [json.dumps(call.messages) for call in server.calls]
        assert paid <= len(before) <= paid + 3
        server.calls.clear()
        server.respond = teacher
        done = subprocess.run(command(path, out), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        after = [json.dumps(call.messages) for call in server.calls]
    answered = {json.loads(line)["prompt"] for line in (out / "traces" / "attempts.jsonl").read_text().splitlines()}
    assert len(answered) == 40
    assert len(after) == 40 - paid
    assert not set(before[:paid]) & set(after)
    assert set(before[paid:]) <= set(after)


def lines(log: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in log.glob("attempts-*.jsonl"))


def test_the_pipeline_runs_it_where_it_is_named(tiny_shop: Path, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    plan = load_plan(
        tiny_shop, overrides=[f"run.out={out}", "traces.lists=prerank", "traces.limit=10"], only=["traces"]
    )
    assert plan.steps[0].inputs == ("prepare", "tokenize", "prerank")
    outcomes = {each.stage: each.status for each in execute(plan)}
    assert outcomes["traces"] == "ran"
    assert {each.stage: each.status for each in execute(plan)}["traces"] == "up to date"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"teacher": "endpoint"}, "needs base_url"),
        ({"teacher": "local"}, "needs model"),
        ({"attempts": 0}, "attempts must be at least 1"),
        ({"list_size": 1}, "list_size must be at least 2"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"timeout": 0.0}, "timeout must be above 0"),
        ({"sampling": "best"}, "must be one of"),
        ({"max_historie": 3}, "did you mean 'max_history'"),
        ({"budget": 0}, "budget must be at least 1"),
        ({"api_key_env": "sk-secret"}, "api_key_env must be the name"),
        ({"base_url": "localhost:8000/v1"}, "base_url must be http"),
        ({"base_url": "http://host:port/v1"}, "base_url must be http"),
        ({"base_url": "https://me:secret@host/v1"}, "base_url must be http"),
        ({"base_url": "https://host/v1?key=secret"}, "base_url must be http"),
    ],
)
def test_a_wrong_setting_says_what_is_right(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        config(**keys)
    assert "secret" not in str(refused.value)


def test_a_key_that_is_not_set_stops_before_anything_is_asked(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(ConfigError, match="TEACHER_KEY is not set"):
        run(ask_server("http://127.0.0.1:1/v1"), artifacts(tiny_run), tmp_path / "traces", 0)


def test_a_local_model_that_is_not_there_is_named(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder: nowhere"):
        run(config(teacher="local", model="nowhere"), artifacts(tiny_run), tmp_path / "traces", 0)


def test_lists_without_their_targets_are_no_lists(tiny_run: Path, tmp_path: Path) -> None:
    inputs = artifacts(tiny_run)
    folder = tmp_path / "prerank"
    shutil.copytree(inputs["prerank"].path, folder)
    from gr2.data.candidates import CandidateLists

    lists = CandidateLists.load(folder / "train.parquet")
    lists.take(lists.label() < 0).save(folder / "train.parquet")
    record = json.loads((folder / "artifact.json").read_text())
    record["bytes"]["train.parquet"] = (folder / "train.parquet").stat().st_size
    (folder / "artifact.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="no training list of prerank holds its target"):
        run(config(), inputs | {"prerank": Artifact.load(folder)}, tmp_path / "traces", 0)

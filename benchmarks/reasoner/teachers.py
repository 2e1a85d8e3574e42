"""Teachers of the reasoner: the evidence teacher on Beauty, and an endpoint that misbehaves in every documented way.

`python -m benchmarks.reasoner.teachers` stores the record `reasoner.teachers`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reasoner.chat_server import Call, Response, completion, serving, transformers_serve
from benchmarks.results import ROOT, Figure, Record, store
from gr2.artifact import Artifact
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.metrics import metric_values, paired_bootstrap, rank_of_target, ranking_metrics
from gr2.models.evidence import CrossFit
from gr2.models.reasoner import SidSpec, from_scratch
from gr2.pipeline import execute, load_plan
from gr2.prompts.answer import answer_text
from gr2.prompts.render import Prompt, read_candidates
from gr2.training.teachers.claims import read_statements
from gr2.training.teachers.ledger import Case, Ledger
from gr2.training.teachers.scores import score_new_lists
from gr2.training.traces import TracesConfig, run
from gr2.training.tracing.table import Trace, load_traces

__all__ = ["teachers"]

DATA = Path(os.environ.get("GR2_DATA", ROOT.parent / "shared" / "data")) / "beauty"
OUT = ROOT / "runs" / "reasoner-teachers"
# A pre-ranker of a few minutes: its lists are a sample of what a teacher meets, and weaker than those of `make beauty`.
CONFIG = """
[run]
out = "{out}"
[prepare]
items = "{data}/items.parquet"
interactions = "{data}/interactions.parquet"
[prerank]
dim = 32
layers = 1
epochs = 6
folds = 2
list_size = 10
threads = 1
[tokenize]
[traces]
lists = "prerank"
"""
PAID, ASKED, CONCURRENCY = 11, 40, 3
Settings = dict[str, Any]


def teachers() -> Record:
    """The record; needs Beauty, and for the real server the extra `transformers[serving]`."""
    OUT.mkdir(parents=True, exist_ok=True)
    config = OUT / "beauty.toml"
    config.write_text(CONFIG.format(out=OUT, data=DATA))
    plan = load_plan(config, only=["prepare", "prerank", "tokenize", "traces"])
    made = {each.stage: each.artifact for each in execute(plan) if each.artifact}
    targeted = run(TracesConfig(lists="prerank", sampling="targeted"), made, OUT / "traces-targeted", 0)
    figures, tables = evidence(made, {"rejection": made["traces"], "targeted": targeted})
    with tempfile.TemporaryDirectory() as scratch:
        for measure in (misbehaviour, killed, real_server):
            folder = Path(scratch) / measure.__name__
            folder.mkdir()
            more, table = measure(made, folder)
            figures += more
            tables += table
    notes = [
        "pre-ranker: SASRec, 32 dimensions, 1 block, 6 epochs, 2 folds; R@1 is over test lists that hold their target",
        "the claims are checked by `gr2.training.teachers.ledger`, which tests show to refuse every claim made false",
    ]
    return Record("reasoner.teachers", "Teachers", "make reasoner-teachers", figures, tables, notes)


def evidence(made: dict[str, Artifact], traces: dict[str, Artifact]) -> tuple[list[Figure], list[dict[str, Any]]]:
    """What the evidence teacher says and how it ranks."""
    dataset = Dataset.load(made["prepare"].path)
    codes = made["tokenize"].array("codes.npy")
    ledger = Ledger(dataset, codes, shown=TracesConfig().title_words)
    told = [trace for artifact in traces.values() for trace in load_traces(artifact.file("traces.parquet"))]
    claims, untrue = check(told, ledger)
    texts = [title for title in dataset.catalog.title if title] + [trace.explanation for trace in told[::2]]
    tokenizer = from_scratch("tiny", texts, SidSpec.of(made["tokenize"]), seed=0).tokenizer
    lengths = [len(tokenizer(trace.explanation, add_special_tokens=False)["input_ids"]) for trace in told[1::2]]
    low, middle, high = np.quantile(lengths, [0.05, 0.5, 0.95])
    train, test = (
        CandidateLists.load(made["prerank"].file(f"{split}.parquet")).with_target() for split in ("train", "test")
    )
    found = score_new_lists(dataset, codes, train, test, CrossFit(neighbours=64, longest=50, folds=5, seed=0))
    before, after = test.label() + 1, rank_of_target(found.scores, test.label())
    gain = paired_bootstrap(metric_values(before), metric_values(after), 0)["R@1"]
    figures = [
        Figure.judge(
            f"claims of {len(told):,} Beauty traces ({claims:,}) that the data does not hold", untrue, 0, at_most=True
        ),
        Figure.judge("tokens of an explanation, 5 % quantile", float(low), 40),
        Figure.judge("tokens of an explanation, 95 % quantile", float(high), 130, at_most=True),
        Figure.judge("evidence teacher, R@1 over the incoming order's, lower end of the interval", gain.low, 0.0),
    ]
    quality = {"incoming": ranking_metrics(before), "evidence teacher": ranking_metrics(after)}
    names = ("R@1", "R@3", "R@5", "N@5", "MRR")
    ranking = {
        "title": f"Beauty, {len(test):,} test lists of 10 that hold their target; R@1 differs by {gain.mean:+.4f} "
        f"({gain.low:+.4f} to {gain.high:+.4f})",
        "columns": ["", *names],
        "rows": [[name, *(f"{values[metric]:.4f}" for metric in names)] for name, values in quality.items()],
    }
    return figures, [ranking, acceptance(traces, float(middle))]


def check(traces: list[Trace], ledger: Ledger) -> tuple[int, int]:
    """How many claims the traces make, and how many of those the data does not hold."""
    shown, claims, untrue = TracesConfig().max_history, 0, 0
    for trace in traces:
        history = tuple(ledger.dataset.history(trace.user, trace.position)[-shown:].tolist())
        for statement in read_statements(trace.explanation):
            for claim in statement.claims:
                claims += 1
                untrue += not ledger.holds(
                    replace(statement, claims=(claim,)), Case(trace.user, history, trace.candidates)
                )
    return claims, untrue


def acceptance(traces: dict[str, Artifact], middle: float) -> dict[str, Any]:
    """The table of accepted lists by difficulty."""
    ranks = [str(rank) for rank in range(1, 11)]
    rows = []
    for name, artifact in traces.items():
        metrics = artifact.metrics
        by_rank = metrics["acceptance_by_incoming_rank"]
        shares = [f"{by_rank[rank]['share']:.2f}" if rank in by_rank else "" for rank in ranks]
        each = f"{1000 * metrics['ask_seconds'] / metrics['attempts']:.1f}"
        rows.append([name, metrics["lists"], metrics["attempts"], f"{metrics['acceptance']:.3f}", *shares, each])
    title = (
        f"Evidence teacher: lists accepted, by the target's incoming rank; {middle:.0f} tokens an explanation (median)"
    )
    return {"title": title, "columns": ["", "lists", "attempts", "all", *ranks, "ms an attempt"], "rows": rows}


def ranked(call: Call) -> Response:
    """An answer that keeps the incoming order."""
    items = read_candidates(Prompt(tuple(call.messages), 0, 0), 4, 256)
    return completion(answer_text("In this order.", items))


def once(first: Callable[[Call], Response]) -> Callable[[Call], Response]:
    """Misbehaves at the first call of each prompt, and answers after it."""
    seen: set[str] = set()

    def respond(call: Call) -> Response:
        prompt = json.dumps(call.messages)
        new = prompt not in seen
        seen.add(prompt)
        return first(call) if new else ranked(call)

    return respond


NEVER = threading.Event()
LISTS = 4
# What the server does at the first call of each of four lists; calls expected, and the reason if answers are refused.
CASES: dict[str, tuple[Callable[[Call], Response], int, str]] = {
    "429, Retry-After: 1": (lambda call: Response(429, b"{}", {"retry-after": "1"}), 8, ""),
    "500": (lambda call: Response(500, b"oops"), 8, ""),
    "a hang": (lambda call: Response(until=NEVER), 8, ""),
    "a reset connection": (lambda call: Response(reset=True), 8, ""),
    "200 with HTML": (lambda call: Response(body=b"<html>", headers={"content-type": "text/html"}), 8, ""),
    "a truncated answer": (lambda call: completion('{"explanation": "So', finish="length"), 4, "truncated"),
    "an invalid JSON answer": (lambda call: completion("I would rank them so: 1, 2"), 4, "not-json"),
}


def endpoint(url: str, **changed: Any) -> TracesConfig:
    """Settings for a server that wants no key."""
    keys: Settings = {
        "lists": "prerank",
        "teacher": "endpoint",
        "base_url": url,
        "model": "scripted",
        "api_key_env": "",
    }
    return TracesConfig(**keys | {"attempts": 1} | changed)


def misbehaviour(made: dict[str, Artifact], folder: Path) -> tuple[list[Figure], list[dict[str, Any]]]:
    """Each case on its own server: how many calls it took, and what became of the lists."""
    rows, good = [], 0
    for number, (name, (first, expected, reason)) in enumerate(CASES.items()):
        began = time.monotonic()
        with serving(once(first)) as server:
            artifact = run(endpoint(server.url, limit=LISTS, timeout=2.0), made, folder / str(number), 0)
        metrics, calls = artifact.metrics, len(server.calls)
        right = calls == expected and metrics["retries"] == expected - LISTS and metrics["verdicts"]["failed"] == 0
        right &= metrics["reasons"] == ({reason: LISTS} if reason else {})
        right &= name != "429, Retry-After: 1" or server.calls[-1].at - server.calls[0].at >= 1.0
        good += right
        outcome = f"refused as {reason}" if reason else "answered after another try"
        rows.append([name, calls, outcome if right else str(metrics["verdicts"]), f"{time.monotonic() - began:.1f}"])
    title = f"An endpoint that misbehaves at the first call for each of {LISTS} lists"
    table = {"title": title, "columns": ["", "calls", "what becomes of the lists", "seconds"], "rows": rows}
    return [Figure.judge("misbehaviours of an endpoint handled as documented", good, len(CASES))], [table]


def killed(made: dict[str, Artifact], folder: Path) -> tuple[list[Figure], list[dict[str, Any]]]:
    """SIGKILL after eleven answers, and the calls of the run that goes on."""
    for name in ("prepare", "tokenize", "prerank"):
        shutil.copytree(made[name].path, folder / name)
    gate = threading.Event()

    def respond(call: Call) -> Response:
        return ranked(call) if call.number < PAID or gate.is_set() else Response(until=NEVER)

    with serving(respond) as server:
        config = folder / "traces.toml"
        settings = endpoint(server.url)
        keys = {
            name: getattr(settings, name)
            for name in ("lists", "teacher", "base_url", "model", "api_key_env", "attempts")
        }
        lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in keys.items())
        config.write_text(f'[run]\nout = "{folder}"\n[traces]\n{lines}\nlimit = {ASKED}\nconcurrency = {CONCURRENCY}\n')
        command = [sys.executable, "-m", "gr2.cli", "traces", str(config)]
        log = folder / "traces.partial" / "checkpoints"
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            while logged(log) < PAID and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        paid = Counter(json.dumps(call.messages) for call in server.calls[:PAID])
        server.calls.clear()
        gate.set()
        subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
        repeated = sum(json.dumps(call.messages) in paid for call in server.calls)
        left = len(server.calls)
    return [
        Figure.judge(f"paid calls repeated after SIGKILL ({PAID} of {ASKED} answered)", repeated, 0, at_most=True),
        Figure.judge("calls of the run that went on", left, ASKED - PAID, at_most=True),
    ], []


def logged(log: Path) -> int:
    """The attempts that are on disk."""
    return sum(path.read_bytes().count(b"\n") for path in log.glob("attempts-*.jsonl"))


def real_server(made: dict[str, Artifact], folder: Path) -> tuple[list[Figure], list[dict[str, Any]]]:
    """`transformers serve` with a tiny Qwen3 that was made here and has learnt nothing."""
    texts = [title for title in Dataset.load(made["prepare"].path).catalog.title[:2000] if title]
    from_scratch("tiny", texts, SidSpec.of(made["tokenize"]), seed=0).save(folder / "model")
    with transformers_serve(folder / "model") as url:
        settings = replace(endpoint(url, limit=16, max_tokens=32, concurrency=4), model=str(folder / "model"))
        metrics = run(settings, made, folder / "traces", 0).metrics
    answered = metrics["attempts"] - metrics["verdicts"]["failed"]
    what = f"lists that `transformers serve` answered with its tokens counted, of {metrics['lists']}"
    table = {
        "title": "`transformers serve` of a tiny Qwen3 on loopback",
        "columns": ["requests", "prompt tokens", "answer tokens", "verdicts", "seconds"],
        "rows": [
            [
                metrics["attempts"],
                metrics["prompt_tokens"],
                metrics["completion_tokens"],
                json.dumps(metrics["reasons"]),
                f"{metrics['ask_seconds']:.1f}",
            ]
        ],
    }
    return [Figure.judge(what, answered - metrics["answers_without_usage"], metrics["lists"])], [table]


def main() -> None:
    """Measure, store, print."""
    record = teachers()
    store(record)
    for figure in record.figures:
        print(f"{figure.what}: {figure.value} ({figure.bar}) {figure.status}")


if __name__ == "__main__":
    main()

"""The model card of a bundle: what it was made of, what it is good for and how good it is, in Hugging Face's format.

Everything on it is in the run's artefacts: the same training run gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gr2.artifact import Artifact
from gr2.graphs import Graphs
from gr2.manifest import FeatureSpec, Limits, ModelSpec
from gr2.version import __version__

__all__ = ["Card", "model_card"]

TAGS = ("recommendation", "re-ranking", "semantic-ids", "onnx")
TYPES = {"R": "recall_at_{}", "N": "ndcg_at_{}"}
NOT_TRAINING = ("threads", "checkpoint_seconds")
LIMITS = """\
- The figures are offline: how high the logged choice stands in lists that a pre-ranker made. What people would have
  done with the new order is not measured; test it online before relying on it.
- Lists of another pre-ranker, another time or another market are another task. Measure there (`gr2 evaluate`).
- It orders what it is given: an item that the pre-ranker does not propose cannot be won, and one that the catalogue
  does not know comes last.
- Counts of what was bought together favour what is already popular. Items without events are ranked by their semantic
  ID and features alone.
- Whether people or providers are treated alike has not been examined."""
TESTS = "`gr2 evaluate`, `gr2 report`"
NO_LICENCE = "None was given (`[export] license`): ask whoever trained this model before using it."
CALL = """\
```sh
pip install gr2
gr2 serve --bundle BUNDLE
```

```python
from gr2.client import Client

with Client("127.0.0.1:50051") as client:
    ranking = client.rerank(history, candidates, scores=scores)
```"""


@dataclass(frozen=True)
class Card:
    """What the card says beyond the run's artefacts; `title` and `license` are as configured, "" for none."""

    title: str
    license: str
    model: ModelSpec
    features: FeatureSpec
    limits: Limits
    graphs: Graphs
    fingerprint: str
    seed: int


def model_card(card: Card, inputs: Mapping[str, Artifact]) -> str:
    """The card of a bundle made from the artefacts `prepare`, `prerank`, `tokenize` and `distill`; Markdown."""
    title = " ".join(card.title.split()) or "GR2 re-ranker"
    sections = [
        ("", _summary(card, inputs)),
        ("Intended use", _use(card)),
        ("Data", _data(inputs)),
        ("Training", _training(card, inputs)),
        ("Quality", _quality(inputs["distill"].metrics, graded="impressions" in inputs["prerank"].metrics)),
        ("Graphs", _graphs(card.graphs)),
        ("Limits", LIMITS),
        (
            "Licence",
            card.license or NO_LICENCE,
        ),
        ("Fingerprints", _fingerprints(card, inputs)),
    ]
    body = "\n\n".join(f"## {name}\n\n{text}" if name else text for name, text in sections)
    return f"---\n{_metadata(card, title, inputs)}\n---\n\n# {_plain(title)}\n\n{body}\n"


def _metadata(card: Card, title: str, inputs: Mapping[str, Artifact]) -> str:
    """The YAML header; JSON texts are YAML."""
    lines = ["library_name: gr2", f"tags: {json.dumps(TAGS)}"]
    if card.license:
        lines.append(f"license: {json.dumps(card.license)}")
    student = inputs["distill"].metrics.get("student", {})
    metrics = [
        {
            "type": TYPES[name[0]].format(name.partition("@")[2]) if "@" in name else name.lower(),
            "name": name,
            "value": value,
        }
        for name, value in sorted(student.items())
    ]
    if metrics:
        result = {
            "task": {"type": "re-ranking", "name": "Re-ranking of candidate lists"},
            "dataset": {"type": "interactions", "name": "the log that it was trained on", "split": "validation"},
            "metrics": metrics,
        }
        lines.append(f"model-index: {json.dumps([{'name': title, 'results': [result]}])}")
    return "\n".join(lines)


def _summary(card: Card, inputs: Mapping[str, Artifact]) -> str:
    model, metrics = card.model, inputs["distill"].metrics
    return (
        f"Re-orders a slate of candidates by the history of a user: a decoder of width {model.dim} and depth "
        f"{model.layers} over semantic IDs of {model.levels} codes of {model.level_size} values, one token "
        f"{'a code' if model.encoding == 'code' else 'an item'} of the history, with counted "
        f"evidence; {metrics['parameters']:,} parameters. Made by gr2 {__version__}."
    )


def _use(card: Card) -> str:
    features = ", ".join(f"`{_plain(name)}`" for name in card.features.names) or "none"
    return (
        "Put it behind a pre-ranker whose lists are like those below, and ask for at most "
        f"{card.limits.max_candidates:,} candidates a request; the newest {card.model.max_history} items of a history "
        f"count. Dense features that it expects, in this order: {features}. Pre-ranker scores: "
        f"{'used' if card.features.scores else 'not used'}; only their order counts.\n\n{CALL}"
    )


def _data(inputs: Mapping[str, Artifact]) -> str:
    data, lists = inputs["prepare"].metrics, inputs["prerank"].metrics
    rows = [
        ("users, items, events", ", ".join(f"{data[name]:,}" for name in ("users", "items", "events"))),
        ("users whose last events share one time", f"{data['tied_share']:.1%}"),
        ("lists come from", "impressions" if "impressions" in lists else _rankers(lists)),
    ]
    rows += [
        (f"{split} lists", f"{each['lists']:,}, with their target {each['with_target']:.1%}")
        for split, each in sorted(lists["lists"].items())
    ]
    if "impressions" in lists:
        shown = lists["impressions"]
        left = shown["without_positive"] + shown["without_negative"] + shown["unknown_users"]
        rows.append(("slates left out", f"{left:,}: without a positive, without a negative, or of unknown users"))
    split = "Of each user's events, the last is for tests, the one before it for validation; only those before teach."
    return f"{split}\n\n{_table(('', ''), rows)}"


def _rankers(lists: Mapping[str, Any]) -> str:
    imported = lists["imported"]
    if not imported:
        return "gr2's SASRec, cross-fitted"
    return f"another ranker ({', '.join(imported)})" + (
        "" if len(imported) == 3 else ", and gr2's SASRec, cross-fitted"
    )


def _training(card: Card, inputs: Mapping[str, Artifact]) -> str:
    distill, metrics = inputs["distill"].config, inputs["distill"].metrics
    text = (
        f"`gr2 distill`, seed {card.seed}, on {metrics['positions']:,} positions of the training split and "
        f"{metrics['lists']:,} candidate lists; {metrics['validation_lists']:,} validation lists weigh its parts."
    )
    rows = [(f"`{name}`", _plain(str(value))) for name, value in sorted(distill.items()) if name not in NOT_TRAINING]
    return f"{text}\n\n{_table(('key', 'value'), rows)}"


def _quality(metrics: Mapping[str, Any], *, graded: bool) -> str:
    if "student" not in metrics:
        return "Not measured: no validation list held its target."
    rows = []
    for name, value in sorted(metrics["student"].items()):
        change = metrics.get("difference", {}).get(name)
        interval = "" if change is None else "{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**change)
        rows.append((name, f"{metrics['incoming'][name]:.4f}", f"{value:.4f}", interval))
    table = _table(("metric", "incoming order", "this model", "difference [95 % interval]"), rows)
    lists = f"{metrics['validation_lists']:,} validation lists that hold their target"
    text = f"On {lists}. The weights of the score's parts were fitted on them, so test lists ({TESTS}) say more."
    if graded:
        text += " Of a slate's positives, the first of the best grade is its target; test slates are judged by all."
    if "propensities" in metrics:
        text += (
            " The model learnt from weighed clicks. Clicks count as they are here, which favours what was shown on top."
        )
    return f"{text}\n\n{table}"


def _graphs(graphs: Graphs) -> str:
    rows = [
        (name, ", ".join(variant.roles) or "not in the bundle", _plain(variant.verdict) or "not judged")
        for name, variant in sorted(graphs.variants.items())
    ]
    table = _table(("arithmetic", "graphs", "beside the trained student"), rows)
    return f"Served by default: {_plain(graphs.why) or graphs.default}.\n\n{table}\n\n`manifest.json` has the figures."


def _fingerprints(card: Card, inputs: Mapping[str, Artifact]) -> str:
    rows = [("codebook", f"`{card.fingerprint}`")]
    rows += [(f"stage `{name}`", f"`{stage.digest}`") for name, stage in sorted(inputs.items())]
    teacher = inputs["distill"].config.get("teacher")
    if teacher:
        rows.append((f"stage `{teacher}`, the teacher", f"`{inputs['distill'].parents[teacher]}`"))
    files = [(name, digest) for name, digest in sorted(inputs["prepare"].parents.items()) if name.startswith("file:")]
    rows += [(f"{name.removeprefix('file:')} file", f"`{digest}`") for name, digest in files]
    hashes = "SHA-256, but for the codebook's own."
    return f"{hashes} `manifest.json` has those of the bundle's files, this one included.\n\n{_table(('of', ''), rows)}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _plain(text: str) -> str:
    """Others' text on one line, without what Markdown or HTML would read as more."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in " ".join(text.split()))

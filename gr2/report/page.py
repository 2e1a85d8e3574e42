"""The report on a whole run: what it is made of, and the files it is written to."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gr2.artifact import write_atomic, write_json
from gr2.errors import MissingExtraError
from gr2.interrupts import interrupts_wait
from gr2.metrics import WEIGHED_METRICS
from gr2.page import render_page
from gr2.report import pictures
from gr2.report.curves import monitor_pictures, training_curves
from gr2.report.examples import example_slates, explanations
from gr2.report.facts import data_facts, stage_facts, tokenizer_facts
from gr2.report.latency import latency_facts
from gr2.report.quality import quality_facts, reasoner_facts
from gr2.report.run import Run
from gr2.report.slices import slice_facts
from gr2.version import __version__

__all__ = ["report_page", "run_report", "write_run_report"]

HEADLINE = "N@5"
TITLE_LENGTH = 140
JUDGED = ("prepare", "prerank", "evaluate")


def run_report(run: Run, *, seed: int, resamples: int, requests: int) -> dict[str, Any]:
    """Everything about a run, JSON-ready. A part that lacks its stages is None, and `left_out` says why."""
    drawn = {"seed": seed, "resamples": resamples}
    parts: dict[str, tuple[tuple[str, ...], Callable[[], Any]]] = {
        "data": (("prepare",), lambda: data_facts(run)),
        "tokenizer": (("prepare", "tokenize"), lambda: tokenizer_facts(run)),
        "curves": ((), lambda: training_curves(run)),
        "quality": (JUDGED, lambda: quality_facts(run, **drawn)),
        "reasoners": ((), lambda: reasoner_facts(run, **drawn)),
        "slices": (JUDGED, lambda: slice_facts(run, **drawn)),
        "examples": (JUDGED, lambda: example_slates(run, seed=seed)),
        "explanations": (("prepare", "tokenize"), lambda: explanations(run, seed=seed)),
        "latency": ((*JUDGED, "export"), lambda: latency_facts(run, requests=requests, seed=seed)),
    }
    report: dict[str, Any] = {
        "run": str(run.path), "gr2": __version__, "seed": seed, "headline": HEADLINE, "stages": stage_facts(run),
    }  # fmt: skip
    left_out: dict[str, str] = {}
    for name, (needed, make) in parts.items():
        missing = [stage for stage in needed if stage not in run.stages]
        if name == "examples" and not missing and run.judged.orders is None:
            left_out[name] = "this evaluation did not keep the order of its slates; run `gr2 evaluate` again"
        elif missing:
            left_out[name] = f"the run has no {' and no '.join(missing)}"
        report[name] = None if name in left_out else make()
    for name, why in (
        ("curves", "no stage left losses or steps"),
        ("reasoners", "no reasoner was evaluated"),
        ("explanations", "no reasoner that explains was evaluated"),
    ):
        if not report[name]:
            report[name] = None
            left_out.setdefault(name, why)
    return {**report, "left_out": left_out}


def write_run_report(
    run: Run, out: Path, *, seed: int = 0, resamples: int = 2000, requests: int = 300
) -> dict[str, Any]:
    """The report of `run_report`, also written to the folder `out` as `report.json` and `report.html`.

    Raises ArtifactError where an artefact is damaged, MissingExtraError without matplotlib or jinja2.
    """
    report = run_report(run, seed=seed, resamples=resamples, requests=requests)
    page = report_page(report, monitor_pictures(run))
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", report)
    write_atomic(out / "report.html", page)
    return report


def report_page(report: Mapping[str, Any], monitors: Mapping[str, bytes]) -> bytes:
    """A self-contained page, UTF-8, without scripts or links, for light and dark screens. All text is escaped."""
    try:
        with interrupts_wait():
            import markupsafe
    except ImportError as error:
        raise MissingExtraError("the page of the report", "train", error) from error
    filters = {"percent": "{:.1%}".format, "figure": "{:.4f}".format, "signed": "{:+.4f}".format}
    drawn = {name: markupsafe.Markup(svg) for name, svg in _pictures(report).items()}  # noqa: S704
    curves = {name.removeprefix("curves "): svg for name, svg in drawn.items() if name.startswith("curves ")}
    encoded = {name: base64.b64encode(picture).decode() for name, picture in monitors.items()}
    shown = {"weighed_metrics": WEIGHED_METRICS, "pictures": drawn, "stage_curves": curves, "monitors": encoded}
    return render_page("gr2.report", "run.html", filters, {**report, **shown}, title=TITLE_LENGTH)


def _pictures(report: Mapping[str, Any]) -> dict[str, str]:
    """The SVG of each part that has one; matplotlib escapes the text in it."""
    drawn = {}
    if report["data"]:
        drawn["data"] = pictures.data_picture(report["data"])
    if report["tokenizer"]:
        tokenizer = report["tokenizer"]
        drawn["usage"] = pictures.usage_picture(tokenizer["levels"], tokenizer["summary"]["code_bits"])
    for stage in dict.fromkeys(curve["stage"] for curve in report["curves"] or ()):
        own = [curve for curve in report["curves"] if curve["stage"] == stage]
        drawn[f"curves {stage}"] = pictures.curves_picture(stage, own)
    if report["quality"]:
        drawn["quality"] = pictures.quality_picture(report["quality"], HEADLINE)
    if report["slices"]:
        drawn["slices"] = pictures.slices_picture(report["slices"])
    if report["latency"]:
        drawn["latency"] = pictures.latency_picture(report["latency"])
    return drawn

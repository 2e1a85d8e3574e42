"""The report on semantic IDs as files: for a machine, as a picture, and as a page to read."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gr2.artifact import Artifact, write_atomic, write_json
from gr2.page import render_page
from gr2.tokenizer.report import SemanticIds, tokenizer_report
from gr2.tokenizer.report_picture import usage_picture

__all__ = ["report_page", "write_report"]

TITLE_LENGTH = 160


def write_report(inputs: Mapping[str, Artifact], out: Path, *, samples: int = 8, seed: int = 0) -> dict[str, Any]:
    """The report of `report.tokenizer_report`, also written to the folder `out`.

    Files, each of them atomic: `tokenizer.json`, `tokenizer.png` and `tokenizer.html`, which has the picture inside.
    Raises ArtifactError where an artefact is damaged, MissingExtraError without matplotlib or jinja2.
    """
    ids = SemanticIds.load(inputs)
    report = tokenizer_report(ids, samples=samples, seed=seed)
    picture = usage_picture(ids.codes, report["levels"], ids.config.level_size)
    page = report_page(report, picture)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "tokenizer.json", report)
    write_atomic(out / "tokenizer.png", picture)
    write_atomic(out / "tokenizer.html", page)
    return report


def report_page(report: Mapping[str, Any], picture: bytes) -> bytes:
    """A self-contained page, UTF-8: the report and the PNG, without scripts or links. Titles are escaped."""
    filters = {"number": "{:.2f}".format, "percent": "{:.2%}".format}
    shown = {**report, "picture": base64.b64encode(picture).decode()}
    return render_page("gr2.tokenizer", "report.html", filters, shown, title=TITLE_LENGTH)

"""Stored figures: one JSON file a run in docs/results/, and docs/results.md made from all of them.

`python -m benchmarks.results` writes docs/results.md again.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "ROOT", "Figure", "Record", "changed_since", "details", "load", "machine", "main", "store"]

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "results"


@dataclass(frozen=True)
class Figure:
    """One claim: what was measured, the value as text, the bar as text, and `ok`, `short` or `not-measured`."""

    what: str
    value: str
    bar: str
    status: str

    @classmethod
    def judge(cls, what: str, value: float, bar: float, *, at_most: bool = False, unit: str = "") -> Figure:
        """The figure of a number against its bar; `at_most` turns the comparison round."""
        good = value <= bar if at_most else value >= bar
        return cls(what, f"{value:.4g}{unit}", f"{'<=' if at_most else '>='}{bar:.4g}{unit}", "ok" if good else "short")


@dataclass(frozen=True)
class Record:
    """One run: its figures, the tables to print and where, when and how it was made."""

    name: str
    title: str
    command: str
    figures: list[Figure]
    tables: list[dict[str, Any]] = field(default_factory=list)  # {"title", "columns": [...], "rows": [[...], ...]}
    notes: list[str] = field(default_factory=list)
    pictures: list[dict[str, str]] = field(default_factory=list)  # {"title", "file"}, the file beside the record
    date: str = ""
    machine: str = ""
    commit: str = ""


def machine() -> str:
    """The machine in one line: processor, cores, memory, system, GPU."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{model or platform.machine()}, {cores} cores, {memory:.0f} GiB, {platform.system()}, {gpu()}"


def gpu() -> str:
    """The GPUs' names and drivers."""
    if shutil.which("nvidia-smi") is None:
        return "no GPU"
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().splitlines()
    return "; ".join(line.replace(", ", ", driver ") for line in lines) or "no GPU"


def commit() -> str:
    """The short hash of HEAD, with `+` if files outside docs differ; GR2_COMMIT in a copy that is no checkout."""
    if not (ROOT / ".git").exists():
        return os.environ.get("GR2_COMMIT", "unknown")
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    command = ["git", "diff", "--quiet", "HEAD", "--", ".", ":!docs"]
    dirty = subprocess.run(command, cwd=ROOT, check=False).returncode
    return head.stdout.strip() + ("+" if dirty else "")


def changed_since(commit: str, path: str) -> bool:
    """Whether anything below `path` differs from what it was at a record's commit; True if git does not know that."""
    command = ["git", "diff", "--quiet", commit.removesuffix("+"), "--", path]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode != 0


def store(record: Record, folder: Path | None = None) -> Path:
    """Write the record to docs/results/NAME.json, or `folder`, stamped with date, machine and commit where it has none.

    A reader, or what is left by a kill, has the old file or the new one.
    """
    stamped = asdict(record) | {
        "date": record.date or datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": record.machine or machine(),
        "commit": record.commit or commit(),
    }
    folder = folder or FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(stamped, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def load(name: str) -> Record | None:
    """The stored record of that name, or None."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    values["figures"] = [Figure(**figure) for figure in values["figures"]]
    return Record(**values)


def render(record: Record) -> list[str]:
    """The record as Markdown lines."""
    lines = [f"## {record.title}", "", f"`{record.command}` on {record.date} at {record.commit}: {record.machine}.", ""]
    lines += ["| figure | value | bar | |", "|---|---|---|---|"]
    lines += [f"| {f.what} | {f.value} | {f.bar} | {f.status} |" for f in record.figures]
    return [*lines, *details(record)]


def contents(record: Record) -> str:
    """The record in the table of contents: how many figures it has, and what became of those that are not ok."""
    anchor = re.sub(r"[^\w -]", "", record.title.lower()).replace(" ", "-")
    count = len(record.figures)
    said = [f"{count} figure{'s' * (count > 1)}"] if count else []
    for status in ("short", "not-measured"):
        missed = sum(figure.status == status for figure in record.figures)
        said += [f"**{missed} {status}**"] if missed else []
    return f"- [{record.title}](#{anchor})" + (f": {', '.join(said)}" if said else "")


def details(record: Record) -> list[str]:
    """The record's tables and notes as Markdown lines."""
    lines: list[str] = []
    for table in record.tables:
        lines += ["", f"**{table['title']}**", "", "| " + " | ".join(table["columns"]) + " |"]
        lines += ["|" + "---|" * len(table["columns"])]
        lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in table["rows"]]
    for picture in record.pictures:
        lines += ["", f"![{picture['title']}](results/{picture['file']})"]
    if record.notes:
        lines += ["", *[f"- {note}" for note in record.notes]]
    return [*lines, ""]


def main() -> None:
    """Write docs/results.md from every stored record."""
    lines = [
        "# Results",
        "",
        "Made by `make results` from the files in docs/results/; each section names the command that",
    ]
    lines += ["makes its figures again. Ratios and qualities carry over to other machines, absolute times do not.", ""]
    records = [record for path in sorted(FOLDER.glob("*.json")) if (record := load(path.stem)) is not None]
    lines += [contents(record) for record in records] + [""]
    for record in records:
        lines += render(record)
    (ROOT / "docs" / "results.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""README's table of figures, made from the stored records, so that it cannot say what they do not.

`make results` writes it between the two marks.
"""

from __future__ import annotations

from benchmarks.results import ROOT, Record, load

__all__ = ["write_headline"]

README = ROOT / "README.md"
BEGIN, END = "<!-- figures: made by `make results` -->", "<!-- end of figures -->"
# What it is, the record, and the figures that say it, by a part of their names.
ROWS = (
    ("Beauty, a SASRec's ten re-ranked, over the incoming order", "student.quality", {
        "R@1": "beauty-sasrec: R@1, student over", "N@5": "beauty-sasrec: N@5, student over",
    }),
    ("the same, N@5 minus LambdaMART's with the same inputs", "student.quality", {
        "": "beauty-sasrec: N@5, student minus LambdaMART",
    }),
    ("games18, lists of three rankers, N@5 minus LambdaMART's", "student.quality", {
        "SASRec": "games18-sasrec: N@5, student minus", "GRU4Rec": "games18-gru4rec: N@5, student minus",
        "BPR": "games18-bpr: N@5, student minus",
    }),
    ("student over the reasoner", "student.checks", {"N@5": "student's N@5 over", "time": "student's time a request"}),
    ("requests a second on one core, over the best other server with the graph as exported", "server.comparison", {
        "": "the default bundle over the graph as exported",
    }),
    ("open-loop p99 with the same graph and load, over the best other server's", "server.comparison", {
        "": "p99 over the best of the others",
    }),
    ("a request less the model's time, over an empty gRPC call", "server.overhead", {"": "p50 of a request less"}),
    ("constrained search in a catalogue of 4 codes of 256, times faster than STATIC", "decoding.retrieve", {
        "uniform codes": "4 x 256, uniform codes, batch 1: times faster",
        "skewed": "4 x 256, skewed codes, batch 1: times faster",
    }),
)  # fmt: skip


def write_headline() -> None:
    """Put the table into README.md, between its marks."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    lines = ["| figure | value | made by |", "|---|---|---|"]
    for what, name, figures in ROWS:
        record = load(name)
        assert record is not None, name
        values = "; ".join(f"{label} {_value(record, part)}".strip() for label, part in figures.items())
        lines.append(f"| {what} | {values} | `{record.command}` |")
    README.write_text("\n".join([before + BEGIN, *lines, END + after]), encoding="utf-8")


def _value(record: Record, part: str) -> str:
    """The value of the one figure whose name has this part."""
    (value,) = (figure.value for figure in record.figures if part in figure.what)
    return value


if __name__ == "__main__":
    write_headline()

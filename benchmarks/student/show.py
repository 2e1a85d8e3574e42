"""Every figure of the student, one line each: `python -m benchmarks.student.show`.

Trainings, and what is measured of them, are read from docs/results/. Now run tests, the times of the served graphs and,
where `make beauty` and `make reasoner` have left their runs, what needs these.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.results import Record
from benchmarks.show import show
from benchmarks.spine.show import judged_tests
from benchmarks.student import checks, graphs, path

__all__ = ["main"]

STORED = {
    "student.quality": "make quality",
    "student.titles": "make student-titles",
    "student.int8": "make student-int8",
    "student.encoding": "make student-encoding",
    "student.clicks": "make student-clicks",
}
# What is measured now where its runs are, else read: the record, its make target, whether the runs are there.
MEASURED: dict[str, tuple[str, Callable[[], bool], Callable[[], Record]]] = {
    "student.checks": ("make student-checks", checks.ready, checks.checks),
    "student.path": ("make student-path", path.ready, path.measured),
}
TESTS = {
    "the memory's columns are their formulas, whatever the candidates' order": ["tests/models/test_memory.py"],
    "training lists get the memory of other users": ["tests/training/student/test_remember.py"],
    "a reasoner's distribution, kept and mixed with the outcomes": ["tests/training/student/test_lessons.py"],
    "the graphs score as the torch student does, and are the same bytes each time": ["tests/export/test_onnx.py"],
    "ties keep the incoming order, so that no shuffle can help": [
        "tests/test_metrics.py",
        "-k",
        "stable or constant or shuffling",
    ],
}


def tests() -> Record:
    """What runs now."""
    figures = [judged_tests(what, "all pass", *arguments) for what, arguments in TESTS.items()]
    return Record("student.tests", "Tests of the student", "make show-student", figures)


def main() -> None:
    """Print one line a figure, and exit with 1 if one is short."""
    there = {name: measure for name, (_, ready, measure) in MEASURED.items() if ready()}
    stored = STORED | {name: target for name, (target, *_) in MEASURED.items() if name not in there}
    measures = [("tests of the student", tests), ("student.graphs", graphs.graphs), *there.items()]
    show("student", "the student", stored=stored, measures=measures)


if __name__ == "__main__":
    main()

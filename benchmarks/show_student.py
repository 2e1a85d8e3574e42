"""Every figure of the student, one line each: `python -m benchmarks.show_student`.

Trainings and the export's variants are read from docs/results/; tests run now.
"""

from __future__ import annotations

from benchmarks.results import Record
from benchmarks.show import show
from benchmarks.show_spine import judged_tests

__all__ = ["main"]

STORED = {
    "student.quality": "make quality",
    "student.titles": "make student-titles",
    "student.checks": "make student-checks",
    "student.int8": "make student-int8",
    "student.graphs": "make student-graphs",
    "student.clicks": "make student-clicks",
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
    show("student", "the student", stored=STORED, measures=[("tests of the student", tests)])


if __name__ == "__main__":
    main()

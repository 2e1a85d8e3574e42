"""Every figure of the kernels, one line each: `python -m benchmarks.kernels.show`.

What needs a GPU, or minutes of compiling, is read from docs/results/; the rest runs now.
"""

from __future__ import annotations

from benchmarks.results import Record
from benchmarks.show import show

__all__ = ["main"]


def checks() -> Record:
    """The kernels need torch and Triton."""
    from benchmarks.kernels import checks

    return checks.checks()


def main() -> None:
    """Print one line a figure, store the fresh ones, and exit with 1 if a figure is short."""
    stored = {"kernels.code": "make kernels-code"}
    stored |= {"kernels.gpu": "make kernels-gpu", "kernels.serving": "make kernels-serving"}
    measures = [("kernels without a GPU", checks)]
    show("kernels", "the kernels on a GPU", stored=stored, measures=measures, source="gr2/kernels")


if __name__ == "__main__":
    main()

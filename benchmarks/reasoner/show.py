"""Every figure of the reasoner, one line each: `python -m benchmarks.reasoner.show`.

Mid-training, fine-tuning and the teachers are read from docs/results/; the rest runs now.
"""

from __future__ import annotations

from benchmarks.reasoner.prompts import prompts
from benchmarks.results import Figure, Record
from benchmarks.show import show
from benchmarks.spine.show import judged_tests

__all__ = ["main"]

STORED = {"reasoner.quality": "make reasoner", "reasoner.teachers": "make reasoner-teachers"}
TESTS = {
    "a sharded folder of a tiny Qwen3, saved and loaded by path, offline": ["tests/models/test_pretrained.py"],
    "another vocabulary, codebook or record is refused": ["tests/models/test_reasoner.py"],
    "SIGKILL in midtrain, then again: the same files; two processes make one artefact": [
        "tests/training/test_midtrain.py", "-k", "killed or processes",
    ],
    "SIGKILL in sft, then again: the same weights and figures": ["tests/training/test_sft.py", "-k", "kill"],
    "the weighted loss against sums by hand and TRL's": ["tests/training/language/test_weighted.py", "-k", "loss"],
}  # fmt: skip


def checks() -> Record:
    """What tests show."""
    figures: list[Figure] = [judged_tests(what, "all pass", *arguments) for what, arguments in TESTS.items()]
    return Record("reasoner.checks", "Checks of the reasoner", "make show-reasoner", figures)


def main() -> None:
    """Print one line a figure, store the fresh ones, and exit with 1 if a figure is short."""
    measures = [("prompts and answers", prompts), ("checks", checks)]
    show("reasoner", "the reasoner", stored=STORED, measures=measures)


if __name__ == "__main__":
    main()

"""Every figure of the semantic-ID tokenizer, one line each: `python -m benchmarks.tokenizer.show`.

The ablation and the scale figures are read from docs/results/; the rest runs now.
"""

from __future__ import annotations

from benchmarks.show import show
from benchmarks.tokenizer.lookup import lookup
from benchmarks.tokenizer.paper import paper
from benchmarks.tokenizer.semantic import semantic

__all__ = ["main"]

STORED = {"tokenizer.ablation": "make tokenizer-ablation", "tokenizer.scale": "make tokenizer-scale"}


def main() -> None:
    """Print one line a figure, store the fresh ones, and exit with 1 if a figure is short."""
    measures = [("uniqueness and meaning", semantic), ("switches", paper), ("look-up", lookup)]
    show("tokenizer", "the tokenizer", stored=STORED, measures=measures)


if __name__ == "__main__":
    main()

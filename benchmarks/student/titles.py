"""A cross-encoder over titles on Beauty's lists: `python -m benchmarks.student.titles [--train N] [--test N]`.

all-MiniLM-L6-v2 reads the newest titles of a history and a candidate's title as one text and gives a score; it is
fine-tuned on the mid-trained model's training lists, by a softmax over each list. A list takes it long, so that only as
many are trained and tested on as are asked for.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from benchmarks.results import ROOT, Figure, Record, store
from benchmarks.student.baselines import ranks_by
from benchmarks.student.quality import kept, values_of
from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.metrics import paired_bootstrap
from gr2.quiet import without_bars
from gr2.tokenizer.embedding import default_model

__all__ = ["main"]

RUN, NAME, SLATE, PAST, TOKENS = ROOT / "runs" / "beauty-reasoner", "beauty-midtrain", 10, 4, 96
LEARNING_RATE, LISTS_A_STEP = 5e-5, 4


class TitleRanker:
    """The cross-encoder, and the texts that it reads."""

    def __init__(self, dataset: Dataset) -> None:
        from sentence_transformers import CrossEncoder

        torch.manual_seed(0)
        with without_bars():
            self._encoder = CrossEncoder(str(default_model()), num_labels=1, max_length=TOKENS, device="cpu")
        self._dataset = dataset

    def scores(self, lists: CandidateLists) -> torch.Tensor:
        """(R, K) scores, -inf in the padding; differentiable."""
        pairs = [pair for row in range(len(lists)) for pair in self._texts(lists, row)]
        options: dict[str, Any] = {"padding": True, "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
        inputs = self._encoder.tokenizer([first for first, _ in pairs], [second for _, second in pairs], **options)
        logits = self._encoder.model(**inputs).logits.reshape(lists.candidates.shape)
        return torch.where(torch.from_numpy(lists.candidates != PADDING), logits, -torch.inf)

    def train(self, lists: CandidateLists) -> None:
        """One pass over the lists."""
        optimiser = torch.optim.AdamW(self._encoder.model.parameters(), lr=LEARNING_RATE)
        self._encoder.model.train()
        order = np.random.default_rng(0).permutation(len(lists))
        for rows in np.array_split(order, max(1, len(lists) // LISTS_A_STEP)):
            part = lists.take(rows)
            loss = F.cross_entropy(self.scores(part), torch.from_numpy(part.label()))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        self._encoder.model.eval()

    def rank(self, lists: CandidateLists) -> NDArray[np.int64]:
        """(R,) the targets' ranks."""
        with torch.inference_mode():
            parts = [self.scores(lists.take(np.array([row]))).numpy() for row in range(len(lists))]
        return ranks_by(lists, np.concatenate(parts))

    def _texts(self, lists: CandidateLists, row: int) -> list[tuple[str, str]]:
        titles = self._dataset.catalog.title
        past = self._dataset.history(int(lists.user[row]), int(lists.position[row]))[-PAST:][::-1]
        context = "; ".join(" ".join((titles[item] or "").split()[:12]) for item in past.tolist())
        return [(context, titles[item] or "" if item != PADDING else "") for item in lists.candidates[row].tolist()]


def drawn(split: str, count: int) -> tuple[CandidateLists, NDArray[np.int64]]:
    """At most `count` lists that hold their target, and their places among all of them."""
    lists = CandidateLists.load(RUN / "midtrain" / f"{split}.parquet").top(SLATE).with_target()
    rows = np.sort(np.random.default_rng(0).permutation(len(lists))[:count])
    return lists.take(rows), rows


def measure(train: int, test: int) -> Record:
    """Train, rank, and compare with the student's seeds on the same lists, of which `make quality` has kept them.

    Raises FileNotFoundError if it has not.
    """
    torch.set_num_threads(1)
    if NAME not in (found := kept(NAME)):
        raise FileNotFoundError("no seed of the student is kept: make quality")
    ranker = TitleRanker(Dataset.load(RUN / "prepare"))
    lists, rows = drawn("test", test)
    began = time.process_time()
    ranker.train(drawn("train", train)[0])
    between = time.process_time()
    ranks = {"incoming": [lists.label() + 1], "cross-encoder over titles": [ranker.rank(lists)]}
    each = (time.process_time() - between) / len(lists)
    ranks |= {who: [seed[rows] for seed in found[NAME][0][who]] for who in ("LambdaMART", "student")}
    values = {who: values_of(own) for who, own in ranks.items()}
    lead = paired_bootstrap(values["cross-encoder over titles"], values["student"], 0)["N@5"]
    text = f"{lead.mean:+.4f} [{lead.low:+.4f}, {lead.high:+.4f}]"
    what = f"{NAME}: N@5, student minus cross-encoder over titles"
    figure = Figure(what, text, ">=0", "ok" if lead.mean >= 0 else "short")
    cells = [[who, *(f"{value.mean():.4f}" for value in values[who].values())] for who in ranks]
    table = {"title": f"{len(lists)} of the test lists", "columns": ["", *values["incoming"]], "rows": cells}
    notes = [
        f"trained on {train} lists in {between - began:.0f} s of one thread; a list takes {1e3 * each:.0f} ms",
        f"a sample of lists, for a list takes so long; the others learn from all, {len(ranks['student'])} seeds",
    ]
    return Record("student.titles", "A cross-encoder over titles", "make student-titles", [figure], [table], notes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and store the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=300, help="training lists")
    parser.add_argument("--test", type=int, default=300, help="test lists")
    chosen = parser.parse_args(arguments)
    print(store(measure(chosen.train, chosen.test)).relative_to(ROOT))


if __name__ == "__main__":
    main()

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gr2.artifact import Artifact
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.models.compressing import Compressing, Compressor
from gr2.models.reasoner import Reasoner
from gr2.prompts.context import newest
from gr2.prompts.render import PromptConfig
from gr2.training.compression.making import make_contexts
from gr2.training.reasoner.contexts import Contexts
from gr2.training.reasoner.reranking import list_slates


@pytest.fixture
def dataset(untrained: dict[str, Artifact]) -> Dataset:
    return Dataset.load(untrained["prepare"].path)


def compressor(untrained: dict[str, Artifact], **settings: object) -> Compressor:
    reasoner = Reasoner.load(untrained["midtrain"].file("model"))
    return Compressor(reasoner, PromptConfig(max_history=4), Compressing(0.5, batch=4, **settings))  # type: ignore[arg-type]


def splits(untrained: dict[str, Artifact], count: int) -> dict[str, CandidateLists]:
    return {
        split: CandidateLists.load(untrained["midtrain"].file(f"{split}.parquet")).take(np.arange(count))
        for split in ("train", "test")
    }


def test_every_history_has_a_context_and_whole_splits_are_not_made_again(
    untrained: dict[str, Artifact], dataset: Dataset, tmp_path: Path
) -> None:
    lists, codes = splits(untrained, 6), untrained["tokenize"].array("codes.npy")
    made = make_contexts(compressor(untrained), dataset, codes, lists, checkpoints=tmp_path, seed=0)
    places = {place for each in lists.values() for place in zip(each.user, each.position, strict=True)}
    assert set(made.found) == places
    assert all(1 <= len(context.lines) <= 4 for context in made.found.values())
    (tmp_path / "contexts-test.parquet").unlink()
    Contexts({}).save(tmp_path / "contexts-train.parquet")
    again = make_contexts(compressor(untrained), dataset, codes, lists, checkpoints=tmp_path, seed=0)
    assert set(again.found) == set(zip(lists["test"].user, lists["test"].position, strict=True))
    assert all(made.found[place] == context for place, context in again.found.items())


def test_the_newest_events_stand_in_for_what_is_refused(
    untrained: dict[str, Artifact], dataset: Dataset, tmp_path: Path
) -> None:
    lists, codes = {"test": splits(untrained, 6)["test"]}, untrained["tokenize"].array("codes.npy")
    free = compressor(untrained, select=False)
    made = make_contexts(free, dataset, codes, lists, checkpoints=tmp_path, seed=0)
    assert {context.refused for context in made.found.values()} == {True}
    for slate, context in zip(list_slates(dataset, codes, lists["test"]), made.found.values(), strict=True):
        passage = free.passage(slate.history)
        assert context.lines == passage.lines(newest(passage, passage.budget(0.5)))
        assert context.before == passage.tokens

import numpy as np
import pytest

from gr2.catalog import Catalog
from gr2.data.dataset import Dataset
from gr2.errors import DataError
from gr2.models.reasoner import SidSpec, from_scratch
from gr2.prompts.semantic_id import sid_text
from gr2.training.language.tasks import (
    caption_texts,
    general_texts,
    persona_texts,
    sequential_rows,
    text_rows,
    tokenizer_texts,
    words_of,
)

SIDS = SidSpec(2, 8, "f00d")
CATALOG = Catalog(
    [1, 2, 3, 4],
    ["Rose soap", "Mint <|im_end|> soap", None, "Comb"],
    ["Flora", "Flora", None, "Wood & Co"],
    [["Beauty", "Soap"], ["Beauty", "Soap"], [], ["Hair", "Combs"]],
    [3.5, None, None, 2.0],
    [None] * 4,
)
CODES = np.array([[0, 1], [0, 2], [3, 3], [7, 0]], dtype=np.uint16)


def dataset_of(*events):
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in events])]).astype(np.int64)
    items = np.concatenate(events).astype(np.int32)
    return Dataset(
        CATALOG, list(range(len(events))), offsets, items, np.full(len(items), np.nan), np.zeros(len(events), np.bool_)
    )


@pytest.fixture(scope="module")
def reasoner():
    return from_scratch("tiny", ["words"], SIDS, vocabulary=300)


@pytest.mark.parametrize("holdout", [0, 1, 2])
def test_sequences_end_before_what_is_held_out(reasoner, holdout):
    dataset = dataset_of([0, 1, 2, 3, 0, 1], [2, 3, 1])
    rows = sequential_rows(reasoner, dataset, CODES, holdout=holdout, max_history=9)
    expected = [items for items in ([0, 1, 2, 3][: 4 - holdout], [2][: max(0, 1 - holdout)]) if items]
    texts = [
        reasoner.tokenizer.decode(rows.tokens[rows.offsets[row] : rows.offsets[row + 1]]) for row in range(len(rows))
    ]
    assert texts == ["".join(sid_text(CODES[item]) for item in items) for items in expected]


def test_codes_are_learnt_and_markers_are_not(reasoner):
    rows = sequential_rows(reasoner, dataset_of([0, 1, 2, 3]), CODES, holdout=0, max_history=9)
    assert rows.learnt.tolist() == [False, True, True, False] * 2


def test_long_histories_are_learnt_once_with_what_came_before(reasoner):
    events = np.random.default_rng(0).integers(0, 4, 12).tolist()
    rows = sequential_rows(reasoner, dataset_of(events), CODES, holdout=0, max_history=3)
    assert rows.lengths.max() == 4 * 4
    learnt = [
        rows.tokens[start:end][rows.learnt[start:end]]
        for start, end in zip(rows.offsets, rows.offsets[1:], strict=False)
    ]
    told = np.concatenate(learnt[::-1]).reshape(-1, 2)
    assert told.tolist() == reasoner.item_tokens(CODES[events[:10]])[:, 1:-1].tolist()


def test_words_say_what_is_known_and_nothing_that_reads_as_a_token():
    assert words_of(CATALOG, 0) == "Rose soap | by Flora | Beauty > Soap | $3.50"
    assert words_of(CATALOG, 2) == ""
    assert "<" not in words_of(CATALOG, 1)


def test_captions_go_both_ways_for_items_that_have_words():
    lines = list(caption_texts(CATALOG, CODES))
    assert len(lines) == 6
    assert lines[0] == f"{sid_text(CODES[0])} {words_of(CATALOG, 0)}\n"
    assert lines[1] == f"{words_of(CATALOG, 0)} {sid_text(CODES[0])}\n"


def test_personas_know_nothing_of_what_is_held_out():
    dataset = dataset_of([0, 1, 3, 2, 2], [2, 3, 3])
    (text,) = persona_texts(dataset, CODES, holdout=1)
    assert text.splitlines() == [
        "Buys: Soap",
        "Brands: Flora",
        f"- {sid_text(CODES[0])} Rose soap",
        f"- {sid_text(CODES[1])} Mint |im_end| soap",
    ]


def test_texts_are_cut_and_all_of_them_learnt(reasoner):
    rows = text_rows(reasoner, ["some words", "x", "yy"], longest=6)
    assert rows.lengths.max() == 6
    assert rows.learnt.sum() == rows.targets.sum() == len(rows.tokens) - len(rows)


def test_general_text_is_read_line_by_line(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two\n")
    assert list(general_texts([tmp_path / "a.txt"])) == ["one\n", " two\n"]
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"b\.txt"):
        list(general_texts([tmp_path / "b.txt"]))


def test_a_tokenizer_is_trained_on_words_and_prompts_but_not_on_ids():
    texts = list(tokenizer_texts(CATALOG, ["general"]))
    assert "general" in texts
    assert words_of(CATALOG, 0) in texts
    assert any("Re-rank" in text for text in texts)
    assert not any("<s_a" in text for text in texts)

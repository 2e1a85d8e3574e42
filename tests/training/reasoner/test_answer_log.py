import numpy as np
import pytest

from gr2.errors import ArtifactError
from gr2.models.answering import Answered
from gr2.prompts.answer import Answer, AnswerError
from gr2.training.reasoner.answer_log import AnswerLog, Entry


def entry(slate):
    return Entry(slate, [1, 0], "text é", 7, None)


BATCHES = [[entry(0), entry(2)], [entry(1)]]


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "answers.jsonl"
    log = AnswerLog(path, "a")
    for batch in BATCHES:
        log.append(batch)
    return path


def test_what_is_kept_is_what_was_appended(written):
    assert AnswerLog(written, "a").batches == BATCHES


def test_answers_to_something_else_are_dropped(written):
    log = AnswerLog(written, "b")
    assert log.batches == []
    log.append(BATCHES[1])
    assert AnswerLog(written, "b").batches == BATCHES[1:]
    assert AnswerLog(written, "a").batches == []


def test_a_file_cut_anywhere_keeps_its_whole_batches_and_takes_more(written):
    data = written.read_bytes()
    for cut in range(len(data)):
        written.write_bytes(data[:cut])
        kept = max(data[:cut].count(b"\n") - 1, 0)
        log = AnswerLog(written, "a")
        assert log.batches == BATCHES[:kept]
        log.append(BATCHES[1])
        assert AnswerLog(written, "a").batches == [*BATCHES[:kept], BATCHES[1]]


def test_without_a_file_answers_are_kept_in_memory():
    log = AnswerLog(None, "a")
    log.append(BATCHES[0])
    assert log.batches == BATCHES[:1]


def test_an_entry_says_why_an_answer_was_refused():
    ranking = np.array([0, 1], np.int32)
    good = Entry.of(3, Answered("x", (5, 6), Answer("x", (0, 1)), ranking))
    bad = Entry.of(4, Answered("\ud800", (5,), AnswerError("not-unicode", "half"), ranking))
    assert good == Entry(3, [0, 1], "x", 2, None)
    assert bad == Entry(4, [0, 1], "?", 1, "not-unicode")


@pytest.mark.parametrize("line", [b"garbage\n", b'[{"slate": 1}]\n', b"[7]\n"])
def test_a_line_that_is_no_answer_is_named(written, line):
    written.write_bytes(written.read_bytes() + line)
    with pytest.raises(ArtifactError, match="not answers written by gr2"):
        AnswerLog(written, "a")

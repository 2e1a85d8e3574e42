import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2.decoding import CandidateTrie
from gr2.decoding.tokens import CodeVocabulary, TokenDecoder

EOS, BEGIN, END, SEPARATOR, CLOSE = 0, (1, 2), (3,), (4, 5), (2, 4)


def vocabulary(levels, level_size, **options):
    tokens = np.random.default_rng(0).permutation(levels * level_size).reshape(levels, level_size) + 6
    return CodeVocabulary(tokens, EOS, **options)


def spell(words, order, codes):
    """The tokens of a ranking, written out."""
    result = []
    for number, candidate in enumerate(order):
        result += words.separator if number else ()
        result += words.begin
        result += [int(words.tokens[level, code]) for level, code in enumerate(codes[candidate].tolist())]
        result += words.end
    return [*result, *(words.close if len(order) else ()), words.eos]


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(1, 3), (2, 2), (4, 3)]),
    size=st.sampled_from([0, 1, 2, 7]),
    around=st.booleans(),
    top_n=st.sampled_from([None, 1, 3]),
)
def test_the_tokens_are_the_ranking_written_out(seed, shape, size, around, top_n):
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, shape[1], (size, shape[0])).astype(np.uint16)
    known = generator.random(size) < 0.8
    words = vocabulary(
        *shape, **({"begin": BEGIN, "end": END, "separator": SEPARATOR, "close": CLOSE} if around else {})
    )
    stream = TokenDecoder(CandidateTrie(codes, known, shape[1]), words, mode="sample", seed=seed, top_n=top_n)
    tokens = stream.next()
    while not stream.decoder.done:
        level, allowed = stream.level, stream.allowed
        assert stream.next() == []
        if generator.random() < 0.5:
            logits = generator.standard_normal(100).astype(np.float32)
            chosen = words.tokens[level, stream.decoder.push(stream.logits(logits))]
        else:
            chosen = generator.choice(allowed)
            stream.accept(int(chosen))
        fresh = stream.next()
        assert fresh[0] == chosen
        assert chosen in allowed
        tokens += fresh
    assert len(stream.allowed) == 0
    emitted = stream.decoder.order.tolist()
    assert tokens == spell(words, emitted, codes)
    assert len(tokens) == words.length(len(emitted))
    assert stream.next() == []


def test_a_ranking_that_is_stopped_ends_at_once():
    codes = np.array([[0, 1], [0, 2], [1, 1]], np.uint16)
    words = vocabulary(2, 3, begin=BEGIN, close=CLOSE)
    stream = TokenDecoder(CandidateTrie(codes, np.ones(3, bool), 3), words)
    assert stream.next() == [*BEGIN]
    stream.accept(int(words.tokens[0, 0]))
    assert stream.next() == [words.tokens[0, 0]]
    stream.decoder.stop()
    assert stream.next() == [EOS]


def test_tokens_that_are_not_allowed_are_named():
    stream = TokenDecoder(CandidateTrie(np.array([[0], [1]], np.uint16), np.ones(2, bool), 3), vocabulary(1, 3))
    stream.next()
    with pytest.raises(ValueError, match="token 999 is not allowed at level 0"):
        stream.accept(999)


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (np.zeros((2, 3), np.int32), TypeError, r"tokens must be int64 \(L, V\), got int32"),
        ([[1]], TypeError, "got list"),
        (np.zeros(3, np.int64), ValueError, r"got shape \(3,\)"),
        (np.zeros((0, 3), np.int64), ValueError, r"got shape \(0, 3\)"),
        (np.array([[1, 2], [3, 3]]), ValueError, "tokens of level 1: token 3 stands for several codes"),
        (np.array([[1, -2]]), ValueError, "token IDs must not be negative, got -2"),
    ],
)
def test_wrong_vocabularies_are_named(tokens, error, message):
    with pytest.raises(error, match=message):
        CodeVocabulary(tokens, EOS)


def test_a_vocabulary_of_other_codes_is_refused():
    with pytest.raises(ValueError, match=r"the vocabulary has \(L, V\) = \(2, 3\), the trie \(1, 3\)"):
        TokenDecoder(CandidateTrie(np.zeros((1, 1), np.uint16), np.ones(1, bool), 3), vocabulary(2, 3))

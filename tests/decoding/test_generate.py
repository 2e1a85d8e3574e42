import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2.decoding import CandidateDecoder, CandidateTrie
from gr2.decoding.reference_generate import (
    reference_exponential,
    reference_generate,
    reference_log,
    reference_sample,
)

SHAPES = [(1, 1), (1, 7), (2, 3), (3, 5), (4, 4), (4, 16), (8, 2)]
KINDS = ["normal", "ties", "masks", "all masked", "huge"]


class Model:
    """Logits that depend on every code of the context."""

    def __init__(self, level_size, seed, kind="normal"):
        generator = np.random.default_rng(seed)
        table = 2 * generator.standard_normal((61, level_size))
        if kind == "ties":
            table = generator.integers(0, 2, table.shape).astype(np.float64)
        if kind == "masks":
            table[generator.random(table.shape) < 0.3] = -np.inf
        if kind == "all masked":
            table[generator.random(61) < 0.1] = -np.inf
        if kind == "huge":
            table *= 1e30
        self.table = table.astype(np.float32)

    def __call__(self, context):
        return self.table[hash(context) % 61]


def slate(seed, levels, level_size, size):
    """Codes of few values, so that paths collide at every depth, and known flags."""
    generator = np.random.default_rng(seed)
    alphabet = generator.permutation(level_size)[: generator.integers(1, level_size + 1)]
    codes = generator.choice(alphabet, (size, levels)).astype(np.uint16)
    return codes, generator.random(size) < generator.choice([0.0, 0.8, 1.0, 1.0])


def generate(decoder, model):
    """Runs the decoder; the codes appended and allowed before each decision, and at the end."""
    context, decisions = [], []
    while True:
        append, allowed = decoder.next()
        context += append.tolist()
        decisions.append((append.tolist(), allowed.tolist()))
        start = len(context) - decoder.forced_count
        forced = [model(tuple(context[:at])) for at in range(start, len(context))]
        decoder.score_forced(np.array(forced, np.float32).reshape(len(forced), -1 if forced else len(model(()))))
        if decoder.done:
            assert decoder.node == -1
            return decisions
        assert decoder.node >= 0
        if decoder.push(model(tuple(context))) == -1:
            assert decoder.done
            assert decoder.node == -1
            return decisions


def assert_same(codes, known, level_size, model, **options):
    trie = CandidateTrie(codes, known, level_size)
    decoder = CandidateDecoder(trie, **options)
    decisions = generate(decoder, model)
    expected = reference_generate(codes, known, model, **options)
    assert decisions == expected.decisions
    assert decoder.order.tolist() == expected.order
    assert decoder.codes.tolist() == expected.codes
    assert decoder.forced.tolist() == expected.forced
    rounding = 2e-5 + 1e-6 * np.abs(model.table, where=np.isfinite(model.table), out=np.zeros_like(model.table)).max()
    for name, values in (("local", expected.local), ("raw", expected.raw)):
        np.testing.assert_allclose(decoder.log_probs(name), values, rtol=1e-5, atol=rounding)
        items = np.array(values[: len(expected.order) * codes.shape[1]]).reshape(-1, codes.shape[1]).sum(1)
        np.testing.assert_allclose(decoder.item_log_probs(name), items, rtol=1e-5, atol=8 * rounding)
    tail = np.random.default_rng(len(codes)).integers(0, 3, len(codes)).astype(np.float32)
    assert decoder.ranking(tail).tolist() == expected.ranking(known, tail)
    assert sorted(decoder.ranking(tail).tolist()) == list(range(len(codes)))
    for path in {tuple(row) for row in codes[known].tolist()}:
        group = [each for each in expected.order if tuple(codes[each].tolist()) == path]
        assert group == sorted(group)
    return decoder


class TestReference:
    @settings(max_examples=max(1_500, settings.default.max_examples), deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        shape=st.sampled_from(SHAPES),
        size=st.sampled_from([0, 1, 2, 3, 5, 9]),
        kind=st.sampled_from(KINDS),
        mode=st.sampled_from(["greedy", "sample"]),
        temperature=st.sampled_from([1.0, 0.5, 3.0]),
        top_n=st.sampled_from([None, None, 1, 2, 100]),
    )
    def test_generation_is_that_of_the_reference(self, seed, shape, size, kind, mode, temperature, top_n):
        codes, known = slate(seed, *shape, size)
        model = Model(shape[1], seed, kind)
        options = {"mode": mode, "seed": seed, "temperature": temperature, "top_n": top_n}
        assert_same(codes, known, shape[1], model, **options)

    @settings(max_examples=max(4, settings.default.max_examples // 100), deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        shape=st.sampled_from([(2, 40), (3, 12), (4, 16)]),
        kind=st.sampled_from(KINDS),
        mode=st.sampled_from(["greedy", "sample"]),
    )
    def test_any_1024_candidates(self, seed, shape, kind, mode):
        codes, known = slate(seed, *shape, 1024)
        assert_same(codes, known, shape[1], Model(shape[1], seed, kind), mode=mode, seed=seed, top_n=40)

    @pytest.mark.parametrize("mode", ["greedy", "sample"])
    @pytest.mark.parametrize(("levels", "level_size"), [(4, 256), (3, 1024), (1, 1024), (2, 65536), (8, 2)])
    def test_1024_candidates(self, mode, levels, level_size):
        generator = np.random.default_rng(levels)
        codes = generator.integers(0, level_size, (1024, levels)).astype(np.uint16)
        if level_size == 1024:
            codes[:, 0] = generator.permutation(1024)  # every code of the level is a child of the root
        known = generator.random(1024) < 0.95
        assert_same(
            codes, known, level_size, Model(level_size, 1), mode=mode, seed=3, top_n=None if level_size < 65536 else 60
        )

    @pytest.mark.parametrize("mode", ["greedy", "sample"])
    def test_a_lone_path_is_forced_from_the_start(self, mode):
        decoder = CandidateDecoder(CandidateTrie(np.full((3, 4), 2, np.uint16), np.ones(3, bool), 3), mode=mode)
        assert decoder.done
        append, allowed = decoder.next()
        assert append.tolist() == [2] * 12
        assert allowed.tolist() == []
        assert decoder.ranking().tolist() == [0, 1, 2]
        assert decoder.log_probs("local").tolist() == [0.0] * 12
        assert np.isnan(decoder.log_probs("raw")).all()

    @pytest.mark.parametrize("size", [0, 1, 4])
    def test_without_known_candidates_nothing_is_emitted(self, size):
        decoder = CandidateDecoder(CandidateTrie(np.zeros((size, 2), np.uint16), np.zeros(size, bool), 3))
        assert decoder.done
        assert [part.tolist() for part in decoder.next()] == [[], []]
        assert decoder.ranking().tolist() == list(range(size))

    def test_a_node_with_every_code_allows_every_code(self):
        codes = np.random.default_rng(0).permutation(64).astype(np.uint16)[:, None]
        decoder = CandidateDecoder(CandidateTrie(codes, np.ones(64, bool), 64))
        logits = np.random.default_rng(1).standard_normal(64).astype(np.float32)
        assert decoder.next()[1].tolist() == list(range(64))
        while not decoder.done:
            decoder.push(logits)
        assert codes[decoder.ranking(), 0].tolist() == np.argsort(-logits, kind="stable").tolist()


def probabilities(codes, known, model, temperature=1.0):
    """The probability of every order of the known candidates under sequential removal."""
    result = {}
    for permutation in itertools.permutations(np.flatnonzero(known).tolist()):
        remaining, context, total = set(permutation), (), 1.0
        for candidate in permutation:
            path = codes[candidate].tolist()
            for depth, code in enumerate(path):
                allowed = sorted({codes[c][depth] for c in remaining if codes[c][:depth].tolist() == path[:depth]})
                weights = np.exp(model(context).astype(np.float64)[allowed] / temperature)
                total *= float(weights[allowed.index(code)] / weights.sum())
                context = (*context, code)
            if candidate != min(c for c in remaining if codes[c].tolist() == path):
                total = 0.0
            remaining.remove(candidate)
        result[permutation] = total
    return result


class TestBruteForce:
    @settings(max_examples=max(50, settings.default.max_examples // 10), deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(SHAPES), size=st.integers(0, 6))
    def test_the_reported_probabilities_are_those_of_all_orders(self, seed, shape, size):
        codes, known = slate(seed, *shape, size)
        trie, model = CandidateTrie(codes, known, shape[1]), Model(shape[1], seed)
        expected = probabilities(codes, known, model, temperature=2.0)
        assert sum(expected.values()) == pytest.approx(1.0)
        for permutation, probability in expected.items():
            if probability == 0.0:
                continue
            decoder, context = CandidateDecoder(trie, temperature=2.0), []
            wanted = [code for candidate in permutation for code in codes[candidate].tolist()]
            while not decoder.done:
                context += decoder.next()[0].tolist()
                decoder.accept(wanted[len(context)], model(tuple(context)))
            assert decoder.order.tolist() == list(permutation)
            assert float(decoder.item_log_probs().sum()) == pytest.approx(math.log(probability), abs=1e-4)

    def test_samples_follow_the_probabilities(self):
        codes = np.array([[0, 1], [2, 0], [0, 1], [0, 2], [1, 1]], np.uint16)
        known, model = np.array([True, True, True, True, False]), Model(3, 5)
        decoder = CandidateDecoder(CandidateTrie(codes, known, 3), mode="sample", temperature=2.0)

        def draw(seed):
            decoder.reset(seed)
            generate(decoder, model)
            return tuple(decoder.order.tolist())

        assert_frequencies([draw(seed) for seed in range(6000)], probabilities(codes, known, model, temperature=2.0))


def assert_frequencies(draws, expected):
    """Every count lies within five standard deviations of what is expected."""
    counts = {order: draws.count(order) for order in expected}
    assert sum(counts.values()) == len(draws)
    for order, probability in expected.items():
        tolerance = 5 * math.sqrt(len(draws) * probability * (1 - probability)) + 1e-9
        assert abs(counts[order] - len(draws) * probability) <= tolerance


class TestSample:
    @settings(max_examples=max(400, settings.default.max_examples), deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        shape=st.sampled_from(SHAPES),
        size=st.sampled_from([0, 1, 2, 6, 20]),
        temperature=st.sampled_from([1.0, 0.3]),
    )
    def test_paths_are_drawn_as_in_the_reference(self, seed, shape, size, temperature):
        codes, known = slate(seed, *shape, size)
        generator = np.random.default_rng(seed)
        scores = (3 * generator.standard_normal(size)).astype(np.float32)
        scores[generator.random(size) < 0.2] = -np.inf
        options = {"seed": seed, "temperature": temperature}
        order, log_probs = CandidateTrie(codes, known, shape[1]).sample(scores, **options)
        expected_order, expected = reference_sample(codes, known, scores, **options)
        assert order.tolist() == expected_order
        np.testing.assert_allclose(log_probs, expected, rtol=1e-5, atol=1e-5)
        assert (order.dtype, log_probs.dtype) == (np.int32, np.float32)

    @pytest.mark.parametrize("tied", [True, False])
    def test_draws_follow_the_softmax_of_the_heads_that_are_left(self, tied):
        codes = np.array([[0, 1], [2, 0], [0, 1], [9, 9], [1, 1]], np.uint16)
        known = np.array([True, True, True, False, True])
        scores = np.array([0.5, 1.0, 0.5 if tied else 1.5, 0.0, -0.5], np.float32)
        first, second = (0, 2) if tied else (2, 0)
        expected = {}
        for order in itertools.permutations([0, 1, 2, 4]):
            left, total = list(order), 1.0
            for candidate in order:
                heads = [c for c in left if c != second or first not in left]
                total *= math.exp(scores[candidate]) / sum(math.exp(scores[c]) for c in heads) * (candidate in heads)
                left.remove(candidate)
            expected[order] = total
        assert sum(expected.values()) == pytest.approx(1.0)
        trie = CandidateTrie(codes, known, 3)
        draws = [trie.sample(scores, seed=seed) for seed in range(20_000)]
        assert_frequencies([tuple(order[:4].tolist()) for order, _ in draws], expected)
        for order, log_probs in draws[:200]:
            assert float(log_probs[known].sum()) == pytest.approx(
                math.log(expected[tuple(order[:4].tolist())]), abs=1e-5
            )

    def test_1024_candidates_at_extreme_scores(self):
        generator = np.random.default_rng(0)
        codes = generator.integers(0, 4, (1024, 4)).astype(np.uint16)
        scores = generator.choice(np.array([3e38, -3e38, 0.0, 1.0], np.float32), 1024)
        order, log_probs = CandidateTrie(codes, np.ones(1024, bool), 4).sample(scores, seed=1, temperature=0.001)
        assert sorted(order.tolist()) == list(range(1024))
        assert np.isfinite(log_probs).all()

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_scores_that_are_not_finite_are_named(self, value):
        trie = CandidateTrie(np.zeros((3, 1), np.uint16), np.ones(3, bool), 2)
        with pytest.raises(ValueError, match=r"scores row 2 is (nan|inf)"):
            trie.sample(np.array([0, 0, value], np.float32), seed=0)

    @pytest.mark.parametrize(
        ("scores", "temperature", "error", "message"),
        [
            (np.zeros(3), 1.0, TypeError, r"scores must be float32 \(K,\), got float64 \(3,\)"),
            (np.zeros(2, np.float32), 1.0, ValueError, r"float32 \(3,\), got float32 \(2,\)"),
            (np.zeros(3, np.float32), 0.0, ValueError, r"temperature must be 0.001 to 1000, got 0"),
            (np.zeros(3, np.float32), np.nan, ValueError, r"temperature must be 0.001 to 1000, got nan"),
        ],
    )
    def test_wrong_arguments_are_named(self, scores, temperature, error, message):
        trie = CandidateTrie(np.zeros((3, 1), np.uint16), np.ones(3, bool), 2)
        with pytest.raises(error, match=message):
            trie.sample(scores, seed=0, temperature=temperature)


class TestDraws:
    def test_the_portable_logarithm_is_accurate(self):
        values = [
            *np.random.default_rng(0).random(2000).tolist(),
            2.0**-53,
            1 - 2.0**-53,
            0.5,
            1.0,
            math.sqrt(0.5),
            36.7,
        ]
        for value in values:
            assert float(reference_log(np.float64(value))) == pytest.approx(math.log(value), rel=1e-15, abs=1e-300)

    def test_draws_are_exponential_and_independent_of_stream_and_index(self):
        draws = np.array([reference_exponential(7, stream, np.arange(60)) for stream in range(60)])
        assert abs(draws.mean() - 1.0) < 5 / 60
        assert abs((draws < math.log(2)).mean() - 0.5) < 5 * 0.5 / 60
        assert np.abs(np.corrcoef(draws) - np.eye(60)).max() < 0.7
        assert np.abs(np.corrcoef(draws.T) - np.eye(60)).max() < 0.7
        assert len(np.unique(draws)) == 3600

    def test_a_seed_gives_the_same_ranking_everywhere(self):
        """Pinned: a change of the generator changes published runs."""
        codes = np.array(list(itertools.product(range(3), range(3), range(2))), np.uint16)
        decoder = CandidateDecoder(CandidateTrie(codes, np.ones(18, bool), 3), mode="sample", seed=2**64 - 1)
        while not decoder.done:
            decoder.push(np.array([0.0, 0.25, 0.5], np.float32))
        assert decoder.ranking().tolist() == [5, 11, 12, 3, 2, 10, 7, 9, 14, 8, 6, 17, 15, 13, 16, 4, 1, 0]

    def test_reset_repeats_a_seed_and_changes_with_another(self):
        codes = np.random.default_rng(0).integers(0, 8, (40, 3)).astype(np.uint16)
        trie, model = CandidateTrie(codes, np.ones(40, bool), 8), Model(8, 0)
        fresh, used = CandidateDecoder(trie, mode="sample", seed=4), CandidateDecoder(trie, mode="sample", seed=9)
        generate(fresh, model)
        generate(used, model)
        assert fresh.order.tolist() != used.order.tolist()
        used.reset(4)
        generate(used, model)
        assert fresh.order.tolist() == used.order.tolist()
        assert np.array_equal(fresh.log_probs(), used.log_probs())


class TestSharing:
    def test_threads_that_share_a_decoder_leave_it_whole(self, in_threads):
        codes = np.random.default_rng(0).integers(0, 4, (60, 3)).astype(np.uint16)
        decoder, errors = CandidateDecoder(CandidateTrie(codes, np.ones(60, bool), 4), mode="sample"), []

        def work(seed):
            generator = np.random.default_rng(seed)
            calls = [
                lambda: decoder.push(generator.standard_normal(4).astype(np.float32)),
                lambda: decoder.accept(int(generator.integers(0, 4))),
                lambda: decoder.score_forced(np.zeros((decoder.forced_count, 4), np.float32)),
                decoder.next,
                lambda: decoder.ranking(np.zeros(60, np.float32)),
                lambda: decoder.reset(seed),
            ]
            for _ in range(3_000):
                try:
                    calls[generator.choice(6, p=[0.5, 0.2, 0.1, 0.1, 0.09, 0.01])]()
                except ValueError:
                    pass  # another thread went on in between
                except BaseException as error:
                    errors.append(error)

        in_threads(3, work)
        assert not errors
        assert sorted(decoder.ranking(np.zeros(60, np.float32)).tolist()) == list(range(60))
        decoder.reset(7)
        fresh = CandidateDecoder(CandidateTrie(codes, np.ones(60, bool), 4), mode="sample", seed=7)
        for each in (decoder, fresh):
            generate(each, Model(4, 0))
        assert decoder.order.tolist() == fresh.order.tolist()

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2.decoding import CandidateTrie
from gr2.decoding.reference import MASKED, reference_score, reference_trie

SHAPES = [(1, 1), (1, 7), (2, 3), (3, 256), (4, 4), (4, 256), (4, 4096), (5, 2), (6, 65536), (8, 3), (8, 65536)]


@st.composite
def slates(draw, shapes=SHAPES, most=40):
    """Codes (K, L), known (K,) and level size. Codes come from a few values, so that paths collide at every depth."""
    levels, level_size = draw(st.sampled_from(shapes))
    size = draw(st.sampled_from([0, 1, 2, draw(st.integers(0, most))]))
    alphabet = draw(st.lists(st.integers(0, level_size - 1), min_size=1, max_size=4))
    row = st.lists(st.sampled_from(alphabet), min_size=levels, max_size=levels)
    codes = draw(st.lists(row, min_size=size, max_size=size))
    known = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return np.array(codes, np.uint16).reshape(size, levels), np.array(known, bool), level_size


def assert_same_trie(trie, codes, known):
    reference = reference_trie(codes, known)
    assert trie.size == len(codes)
    assert trie.node_count == len(reference.prefixes)
    assert np.array_equal(trie.parents(), reference.parents)
    assert np.array_equal(trie.mask(), reference.mask)
    for depth, expected in reference.nodes.items():
        assert np.array_equal(trie.nodes(depth), expected)
    prefixes, levels = list(reference.prefixes), codes.shape[1]
    below = prefixes[1:]
    assert trie.tokens().tolist() == [trie.level_size * (len(path) - 1) + int(path[-1]) for path in below]
    assert trie.counts().tolist() == [sum(len(path) == depth for path in below) for depth in range(1, levels)]
    lines = [[prefixes.index(path[:end]) - 1 for end in range(len(path), 0, -1)] for path in below]
    padded = [line + [-1] * (levels - 1 - len(line)) for line in lines]
    assert np.array_equal(trie.ancestors(), np.array(padded, dtype=np.int64).reshape(len(below), levels - 1))


def assert_same_scores(codes, known, level_size, logits, prior, normalization):
    order, scores = CandidateTrie(codes, known, level_size).score(logits, prior, normalization=normalization)
    _, expected = reference_score(codes, known, logits, prior, normalization=normalization)
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-5)
    # Rounding may decide between near ties; the order must be that of the scores that were returned.
    stable = np.argsort(-scores.astype(np.float64), kind="stable")
    assert np.array_equal(order, [*(c for c in stable if known[c]), *np.flatnonzero(~known)])
    assert (order.dtype, scores.dtype) == (np.int32, np.float32)


class TestStructure:
    @settings(max_examples=max(400, settings.default.max_examples), deadline=None)
    @given(slate=slates())
    def test_nodes_parents_and_mask_are_those_of_the_reference(self, slate):
        codes, known, level_size = slate
        trie = CandidateTrie(codes, known, level_size)
        assert_same_trie(trie, codes, known)
        assert trie.parents().dtype == np.int32
        assert trie.mask().dtype == np.float32
        for depth in range(1, codes.shape[1]):
            assert trie.nodes(depth).dtype == np.int64

    @pytest.mark.parametrize(("levels", "level_size"), [(4, 256), (4, 65536), (2, 32)])
    def test_the_largest_slate(self, levels, level_size):
        generator = np.random.default_rng(1)
        codes = generator.integers(0, min(level_size, 300), (1024, levels)).astype(np.uint16)
        codes[:, 0] %= 3
        codes[:, 1] %= 5
        known = generator.random(1024) < 0.9
        trie = CandidateTrie(codes, known, level_size)
        prefixes = {tuple(row[:depth]) for row in codes[known].tolist() for depth in range(levels)}
        assert trie.node_count == len(prefixes)
        parents = trie.parents()
        assert np.all(np.diff(parents) >= 0)
        mask, visible = trie.mask(), np.eye(trie.node_count, dtype=bool)
        for node in range(1, trie.node_count):
            visible[node] |= visible[parents[node]]
        assert np.array_equal(mask == 0, visible)
        assert np.all(mask[~visible] == MASKED)

    @pytest.mark.parametrize(
        "known",
        [np.zeros(0, bool), np.zeros(1, bool), np.zeros(5, bool)],
        ids=["no candidates", "1 unknown", "5 unknown"],
    )
    def test_without_known_candidates_there_is_the_root_alone(self, known):
        trie = CandidateTrie(np.full((len(known), 4), 60_000, np.uint16), known, 256)
        assert trie.node_count == 1
        assert trie.mask().tolist() == [[0.0]]
        assert trie.parents().tolist() == [-1]
        assert [trie.nodes(depth).tolist() for depth in (1, 2, 3)] == [[], [], []]
        order, scores = trie.score(np.zeros((1, 256), np.float32))
        assert order.tolist() == list(range(len(known)))
        assert np.all(scores == -np.inf)

    def test_a_depth_out_of_range_is_refused(self):
        trie = CandidateTrie(np.zeros((2, 3), np.uint16), np.ones(2, bool), 4)
        for depth in (-1, 0, 3):
            with pytest.raises(ValueError, match=f"depth must be 1 to 2, got {depth}"):
                trie.nodes(depth)


class TestScore:
    @settings(max_examples=max(300, settings.default.max_examples), deadline=None)
    @given(
        slate=slates([(1, 1), (1, 7), (2, 3), (3, 256), (4, 4), (4, 31), (8, 3)], most=25),
        seed=st.integers(0, 2**32 - 1),
        spread=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
        with_prior=st.booleans(),
        normalization=st.sampled_from(["raw", "local"]),
    )
    def test_scores_are_those_of_the_reference(self, slate, seed, spread, with_prior, normalization):
        codes, known, level_size = slate
        generator = np.random.default_rng(seed)
        nodes = CandidateTrie(codes, known, level_size).node_count
        logits = (spread * generator.standard_normal((nodes, level_size))).astype(np.float32)
        prior = generator.standard_normal(len(codes)).astype(np.float32) if with_prior else None
        assert_same_scores(codes, known, level_size, logits, prior, normalization)

    @settings(max_examples=max(100, settings.default.max_examples // 5), deadline=None)
    @given(
        slate=slates([(1, 7), (2, 3), (3, 256), (8, 3)], most=6).filter(lambda slate: len(slate[0]) <= 6),
        seed=st.integers(0, 2**32 - 1),
        normalization=st.sampled_from(["raw", "local"]),
    )
    def test_the_order_is_the_likeliest_of_all_permutations(self, slate, seed, normalization):
        """Of drawing one candidate after the other by exp(score), without replacement; ties in incoming order."""
        codes, known, level_size = slate
        nodes = CandidateTrie(codes, known, level_size).node_count
        logits = np.random.default_rng(seed).standard_normal((nodes, level_size)).astype(np.float32)
        order, scores = CandidateTrie(codes, known, level_size).score(logits, normalization=normalization)
        _, expected = reference_score(codes, known, logits, normalization=normalization)
        rounded = np.where(known, np.round(expected, 4), -np.inf)  # equal codes tie, and what rounding could part does
        if np.any(np.diff(np.unique(scores[known])) < 1e-3):
            return

        def likelihood(permutation):
            left = np.logaddexp.accumulate(rounded[list(reversed(permutation))])[::-1]
            return sum(rounded[list(permutation)] - left)

        best = max(itertools.permutations(np.flatnonzero(known).tolist()), key=likelihood)
        assert order.tolist() == [*best, *np.flatnonzero(~known)]

    @pytest.mark.parametrize("normalization", ["raw", "local"])
    def test_the_largest_slate(self, normalization):
        generator = np.random.default_rng(2)
        codes = generator.integers(0, 256, (1024, 3)).astype(np.uint16)
        codes[:, :2] //= 32
        known = generator.random(1024) < 0.9
        trie = CandidateTrie(codes, known, 256)
        logits = (3 * generator.standard_normal((trie.node_count, 256))).astype(np.float32)
        assert_same_scores(codes, known, 256, logits, None, normalization)

    @pytest.mark.parametrize("level_size", [1, 2, 3, 15, 16, 17, 255, 511, 512, 513, 4096, 65536])
    @pytest.mark.parametrize("shift", [0.0, -1e4, 1e4])
    def test_log_sum_exp_is_accurate(self, level_size, shift):
        generator = np.random.default_rng(level_size)
        logits = (5 * generator.standard_normal((1, level_size)) + shift).astype(np.float32)
        codes = np.array([[level_size // 2]], np.uint16)
        _, scores = CandidateTrie(codes, np.ones(1, bool), level_size).score(logits)
        row = logits[0].astype(np.float64)
        expected = row[level_size // 2] - np.logaddexp.reduce(row)
        np.testing.assert_allclose(scores, [expected], rtol=1e-6, atol=1e-5)

    def test_extreme_finite_logits_keep_known_candidates_finite(self):
        top = np.finfo(np.float32).max
        logits = np.array([[top, -top, 0.0]], np.float32)
        codes = np.array([[1], [2], [0], [0]], np.uint16)
        trie = CandidateTrie(codes, np.array([True, True, True, False]), 3)
        order, scores = trie.score(logits)
        assert order.tolist() == [2, 0, 1, 3]
        assert scores.tolist() == [-top, -top, 0.0, -np.inf]

    def test_the_local_policy_sums_to_one(self):
        generator = np.random.default_rng(0)
        codes = np.unique(generator.integers(0, 4, (30, 3)).astype(np.uint16), axis=0)
        trie = CandidateTrie(codes, np.ones(len(codes), bool), 4)
        logits = generator.standard_normal((trie.node_count, 4)).astype(np.float32)
        _, scores = trie.score(logits, normalization="local")
        assert np.exp(scores.astype(np.float64)).sum() == pytest.approx(1.0, abs=1e-5)

    def test_a_lone_candidate_costs_nothing_under_the_local_policy(self):
        trie = CandidateTrie(np.array([[3, 1, 2]], np.uint16), np.ones(1, bool), 4)
        logits = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
        assert trie.score(logits, normalization="local")[1].tolist() == [0.0]

    def test_equal_codes_tie_and_keep_their_incoming_order(self):
        codes = np.array([[1, 2], [0, 0], [1, 2], [1, 2]], np.uint16)
        trie = CandidateTrie(codes, np.ones(4, bool), 3)
        logits = np.array([[0.0, 5.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 5.0]], np.float32)
        order, scores = trie.score(logits)
        assert order.tolist() == [0, 2, 3, 1]
        assert len(set(scores[[0, 2, 3]].tolist())) == 1

    def test_negative_and_positive_zero_tie(self):
        trie = CandidateTrie(np.zeros((3, 1), np.uint16), np.ones(3, bool), 1)
        order, _ = trie.score(np.zeros((1, 1), np.float32), np.array([-0.0, 0.0, -0.0], np.float32))
        assert order.tolist() == [0, 1, 2]

    def test_the_prior_decides_between_equal_codes(self):
        trie = CandidateTrie(np.zeros((3, 2), np.uint16), np.ones(3, bool), 2)
        logits = np.zeros((2, 2), np.float32)
        order, scores = trie.score(logits, np.array([0.0, 2.0, 1.0], np.float32))
        assert order.tolist() == [1, 2, 0]
        np.testing.assert_allclose(scores - scores[0], [0.0, 2.0, 1.0], atol=1e-6)

    def test_unknown_candidates_come_last_in_incoming_order(self):
        known = np.array([False, True, False, True, False])
        codes = np.array([[9], [0], [9], [1], [9]], np.uint16)
        order, scores = CandidateTrie(codes, known, 2).score(np.array([[0.0, 1.0]], np.float32))
        assert order.tolist() == [3, 1, 0, 2, 4]
        assert np.isneginf(scores[~known]).all()
        assert np.isfinite(scores[known]).all()

    def test_threads_score_at_once(self, in_threads):
        generator = np.random.default_rng(0)
        codes = generator.integers(0, 256, (200, 4)).astype(np.uint16)
        trie = CandidateTrie(codes, np.ones(200, bool), 256)
        inputs = [generator.standard_normal((trie.node_count, 256)).astype(np.float32) for _ in range(4)]
        expected = [trie.score(logits) for logits in inputs]
        wrong = []

        def work(thread):
            for _ in range(30):
                order, scores = trie.score(inputs[thread])
                if not np.array_equal(order, expected[thread][0]) or not np.array_equal(scores, expected[thread][1]):
                    wrong.append(thread)

        in_threads(4, work)
        assert not wrong


class TestUnconstructed:
    @pytest.mark.parametrize("new", [CandidateTrie.__new__, object.__new__])
    def test_new_alone_makes_no_object(self, new):
        with pytest.raises(TypeError):
            new(CandidateTrie)


class TestArguments:
    @pytest.mark.parametrize(
        ("codes", "known", "level_size", "error", "message"),
        [
            (np.zeros((10, 4), np.float32), np.ones(10, bool), 4, TypeError, r"uint16 \(K, L\), got float32 \(10, 4\)"),
            (np.zeros(10, np.uint16), np.ones(10, bool), 4, ValueError, r"uint16 \(K, L\), got uint16 \(10,\)"),
            (np.zeros((2, 4), ">u2"), np.ones(2, bool), 4, TypeError, r"got >u2 \(2, 4\)"),
            ([[0, 0]], np.ones(1, bool), 4, TypeError, r"codes must be uint16 \(K, L\), got list"),
            (np.zeros((2, 4), np.uint16), np.ones(2, np.uint8), 4, TypeError, r"known must be bool \(K,\), got uint8"),
            (np.zeros((2, 4), np.uint16), np.ones(3, bool), 4, ValueError, r"with K = 2, got bool \(3,\)"),
            (np.zeros((2, 0), np.uint16), np.ones(2, bool), 4, ValueError, "1 to 8 levels, got 0"),
            (np.zeros((2, 9), np.uint16), np.ones(2, bool), 4, ValueError, "1 to 8 levels, got 9"),
            (np.zeros((2, 4), np.uint16), np.ones(2, bool), 0, ValueError, "level_size must be 1 to 65536, got 0"),
            (np.zeros((2, 4), np.uint16), np.ones(2, bool), -1, ValueError, "level_size must be 1 to 65536, got -1"),
            (np.zeros((1025, 4), np.uint16), np.ones(1025, bool), 4, ValueError, "at most 1024 candidates, got 1025"),
            (np.array([[0, 0], [1, 4]], np.uint16), np.ones(2, bool), 4, ValueError, "candidate 1 at level 1 are 4"),
        ],
    )
    def test_wrong_slates_are_named(self, codes, known, level_size, error, message):
        with pytest.raises(error, match=message):
            CandidateTrie(codes, known, level_size)

    @pytest.mark.parametrize(
        ("logits", "prior", "error", "message"),
        [
            (np.zeros((2, 3)), None, TypeError, r"logits must be float32 \(n, V\), got float64 \(2, 3\)"),
            (np.zeros((3, 3), np.float32), None, ValueError, r"float32 \(2, 3\), got float32 \(3, 3\)"),
            (np.zeros((2, 4), np.float32), None, ValueError, r"float32 \(2, 3\), got float32 \(2, 4\)"),
            (np.zeros(6, np.float32), None, ValueError, r"got float32 \(6,\)"),
            (np.zeros((2, 3), np.float32), np.zeros(1), TypeError, r"prior must be float32 \(K,\), got float64 \(1,\)"),
            (np.zeros((2, 3), np.float32), np.zeros(2, np.float32), ValueError, r"float32 \(1,\), got float32 \(2,\)"),
            (np.zeros((2, 3), np.float32), np.zeros(0, np.float32), ValueError, r"float32 \(1,\), got float32 \(0,\)"),
            (None, None, TypeError, "got NoneType"),
        ],
    )
    def test_wrong_score_inputs_are_named(self, logits, prior, error, message):
        trie = CandidateTrie(np.array([[1, 2]], np.uint16), np.ones(1, bool), 3)
        with pytest.raises(error, match=message):
            trie.score(logits, prior)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("normalization", ["raw", "local"])
    def test_logits_that_are_not_finite_are_named(self, value, normalization):
        trie = CandidateTrie(np.array([[1, 2], [2, 0]], np.uint16), np.ones(2, bool), 40)
        for row, column in [(0, 0), (1, 39), (2, 17)]:
            logits = np.zeros((3, 40), np.float32)
            logits[row, column] = value
            with pytest.raises(ValueError, match=f"logits row {row} column {column} is -?(nan|inf)"):
                trie.score(logits, normalization=normalization)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_a_prior_that_is_not_finite_is_named(self, value):
        trie = CandidateTrie(np.zeros((3, 1), np.uint16), np.ones(3, bool), 2)
        prior = np.array([0, 0, value], np.float32)
        with pytest.raises(ValueError, match=r"prior row 2 is -?(nan|inf)"):
            trie.score(np.zeros((1, 2), np.float32), prior)

    def test_a_view_of_any_size_is_refused_before_it_is_copied(self):
        trie = CandidateTrie(np.array([[1, 2]], np.uint16), np.ones(1, bool), 3)
        huge = np.broadcast_to(np.float32(0), (2**30, 2**30))
        with pytest.raises(
            ValueError, match=r"logits must be float32 \(2, 3\), got float32 \(1073741824, 1073741824\)"
        ):
            trie.score(huge)
        with pytest.raises(ValueError, match=r"prior must be float32 \(1,\), got float32 \(1073741824,\)"):
            trie.score(np.zeros((2, 3), np.float32), huge[0])

    def test_an_unknown_normalization_is_named(self):
        trie = CandidateTrie(np.zeros((1, 1), np.uint16), np.ones(1, bool), 2)
        with pytest.raises(ValueError, match="normalization must be 'raw' or 'local', got 'global'"):
            trie.score(np.zeros((1, 2), np.float32), normalization="global")

    def test_strided_and_unaligned_arrays_are_read_in_their_order(self):
        generator = np.random.default_rng(0)
        wide = generator.integers(0, 8, (20, 6)).astype(np.uint16)
        codes = wide[::-2, ::2]
        trie = CandidateTrie(codes, np.ones(10, bool), 8)
        assert_same_trie(trie, codes, np.ones(10, bool))
        logits = generator.standard_normal((8, trie.node_count)).astype(np.float32)
        buffer = np.zeros(logits.nbytes + 1, np.uint8)
        unaligned = buffer[1:].view(np.float32).reshape(trie.node_count, 8)
        unaligned[:] = logits.T
        assert not unaligned.flags.aligned
        for one, other in zip(trie.score(logits.T), trie.score(unaligned), strict=True):
            assert np.array_equal(one, other)

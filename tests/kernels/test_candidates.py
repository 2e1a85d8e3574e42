import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2.decoding.reference import reference_trie
from gr2.kernels import CandidateTables

SHAPES = [(1, 1), (1, 7), (2, 3), (3, 5), (4, 4), (8, 2), (8, 32768)]


def slate(seed, levels, level_size, requests, candidates):
    generator = np.random.default_rng(seed)
    alphabet = generator.choice(level_size, min(level_size, 3), replace=False)
    codes = generator.choice(alphabet, (requests, candidates, levels)).astype(np.uint16)
    return codes, generator.random((requests, candidates)) < generator.choice([0.0, 0.8, 1.0], (requests, 1))


class TestAgainstReference:
    @settings(max_examples=300, deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        shape=st.sampled_from(SHAPES),
        requests=st.integers(1, 4),
        candidates=st.sampled_from([0, 1, 2, 5, 12]),
    )
    def test_the_tables_are_those_of_each_requests_trie(self, seed, shape, requests, candidates):
        codes, known = slate(seed, *shape, requests, candidates)
        tables = CandidateTables.build(codes, known, shape[1])
        for i in range(requests):
            trie = reference_trie(codes[i], known[i])
            number = {prefix: node for node, prefix in enumerate(trie.prefixes)}
            count = int(known[i].sum())
            assert tables.counts[i].tolist() == [len(trie.prefixes), count]
            order = tables.positions[i].tolist()
            rows = [tuple(row) for row in codes[i].tolist()]
            assert order[:count] == sorted(np.flatnonzero(known[i]).tolist(), key=lambda c: (rows[c], c))
            assert order[count:] == np.flatnonzero(~known[i]).tolist()
            paths = [rows[c] for c in order[:count]]
            for level in range(shape[0]):
                assert tables.path_codes[i, level, :count].tolist() == [path[level] for path in paths]
                assert tables.path_nodes[i, level, :count].tolist() == [number[path[:level]] for path in paths]
                firsts = [[path[: level + 1] for path in paths].index(path[: level + 1]) for path in paths]
                assert tables.starts[i, level, :count].tolist() == firsts
            for prefix, node in number.items():
                begin, end = tables.first_child[i, node : node + 2].tolist()
                children = sorted({path[len(prefix)] for path in paths if path[: len(prefix)] == prefix})
                assert tables.child_codes[i, begin:end].tolist() == children

    def test_more_nodes_than_there_is_room_for_are_refused(self):
        codes = np.arange(8, dtype=np.uint16).reshape(1, 4, 2)
        known = np.ones((1, 4), np.bool_)
        assert CandidateTables.build(codes, known, 8, nodes=7).nodes == 7
        with pytest.raises(ValueError, match="request 0 has 5 nodes, there is room for 4"):
            CandidateTables.build(codes, known, 8, nodes=4)


class TestErrors:
    @pytest.mark.parametrize(
        ("codes", "known", "level_size", "error", "message"),
        [
            (
                np.zeros((1, 2, 2)),
                np.ones((1, 2), bool),
                4,
                TypeError,
                r"codes must be uint16 \(B, K, L\), got float64",
            ),
            (
                np.zeros((1, 2, 2), np.uint16),
                np.ones((1, 2)),
                4,
                TypeError,
                r"known must be bool \(B, K\), got float64",
            ),
            (np.zeros((2, 2), np.uint16), np.ones((1, 2), bool), 4, ValueError, r"got \(2, 2\) and \(1, 2\)"),
            (np.zeros((1, 1025, 1), np.uint16), np.ones((1, 1025), bool), 4, ValueError, "at most 1024 candidates"),
            (np.zeros((1, 1, 9), np.uint16), np.ones((1, 1), bool), 4, ValueError, "1 to 8 levels, got 9"),
            (np.zeros((1, 1, 1), np.uint16), np.ones((1, 1), bool), 0, ValueError, "level_size must be 1 to 32768"),
            (
                np.array([[[0, 1], [4, 0]]], np.uint16),
                np.ones((1, 2), bool),
                4,
                ValueError,
                "codes of request 0 candidate 1 at level 0 are 4, level_size is 4",
            ),
        ],
    )
    def test_what_no_trie_takes_is_named(self, codes, known, level_size, error, message):
        with pytest.raises(error, match=message):
            CandidateTables.build(codes, known, level_size)

    def test_codes_of_unknown_candidates_are_not_read(self):
        codes = np.array([[[0], [9]]], np.uint16)
        assert CandidateTables.build(codes, np.array([[True, False]]), 4).counts.tolist() == [[1, 1]]

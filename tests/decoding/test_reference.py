import subprocess
import sys

import numpy as np

from gr2.decoding import CandidateTrie
from gr2.decoding.reference import MASKED, reference_score, reference_trie

CODES = np.array([[1, 2], [0, 3], [1, 0], [9, 9], [1, 2]], np.uint16)
KNOWN = np.array([True, True, True, False, True])


def test_reference_trie_numbers_inner_nodes_breadth_first():
    trie = reference_trie(CODES, KNOWN)
    assert trie.prefixes == [(), (0,), (1,)]
    assert trie.nodes[1].tolist() == [0, 1]
    assert trie.parents.tolist() == [-1, 0, 0]
    assert trie.mask.tolist() == [[0, MASKED, MASKED], [0, 0, MASKED], [0, MASKED, 0]]


def test_reference_score_is_the_sum_of_log_probabilities_along_the_path():
    probabilities = np.array([[0.2, 0.5, 0.1, 0.2], [0.1, 0.1, 0.1, 0.7], [0.4, 0.2, 0.3, 0.1]])
    order, scores = reference_score(CODES, KNOWN, np.log(probabilities).astype(np.float32))
    np.testing.assert_allclose(np.exp(scores), [0.15, 0.14, 0.2, 0.0, 0.15], rtol=1e-6)
    assert order.tolist() == [2, 0, 4, 1, 3]


def test_reference_score_local_renormalises_over_the_candidates():
    probabilities = np.array([[0.2, 0.5, 0.1, 0.2], [0.1, 0.1, 0.1, 0.7], [0.4, 0.2, 0.3, 0.1]])
    _, scores = reference_score(CODES, KNOWN, np.log(probabilities).astype(np.float32), normalization="local")
    np.testing.assert_allclose(np.exp(scores), np.array([5 * 3 / 7, 2, 5 * 4 / 7, 0, 5 * 3 / 7]) / 7, rtol=1e-6)


def test_reference_score_adds_the_prior():
    logits = np.zeros((3, 4), np.float32)
    prior = np.array([0.0, 3.0, 1.0, 9.0, 2.0], np.float32)
    order, _ = reference_score(CODES, KNOWN, logits, prior)
    assert order.tolist() == [1, 4, 2, 0, 3]


def test_scoring_the_trie_equals_scoring_each_candidate_alone():
    """One pass over the shared nodes is exact: nothing depends on which other candidates share a prefix."""
    generator = np.random.default_rng(0)
    table = {}

    def logits_of(trie):
        rows = [table.setdefault(prefix, generator.standard_normal(6)) for prefix in trie.prefixes]
        return np.array(rows, np.float32)

    codes = generator.integers(0, 6, (30, 3)).astype(np.uint16)
    known = np.ones(30, bool)
    _, together = CandidateTrie(codes, known, 6).score(logits_of(reference_trie(codes, known)))
    for candidate in range(30):
        one = codes[candidate : candidate + 1]
        _, alone = CandidateTrie(one, known[:1], 6).score(logits_of(reference_trie(one, known[:1])))
        assert alone[0] == together[candidate]


def test_a_missing_core_says_how_to_build_it(tmp_path):
    program = "import sys\nsys.modules['gr2._core'] = None\nimport gr2.decoding\n"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert "C++ core cannot be loaded" in answer.stderr
    assert "`pip install .`" in answer.stderr
    assert "`make dev`" in answer.stderr

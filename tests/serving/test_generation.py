import subprocess
import sys

import numpy as np
import pytest

from gr2.decoding import CandidateTrie
from gr2.decoding.reference import reference_score, reference_trie
from gr2.decoding.reference_generate import reference_generate
from gr2.decoding.tokens import CodeVocabulary
from gr2.errors import BundleError, Gr2Error
from gr2.serving.generation import CachedModel, SequenceRanker

onnx = pytest.importorskip("onnx")
helper, FLOAT, INT = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64

LEVELS, SIZE, DIM, TOKENS, LONGEST = 3, 5, 8, 30, 400
GENERATOR = np.random.default_rng(0)
WEIGHTS = {
    "embed_a": GENERATOR.standard_normal((TOKENS, DIM)).astype(np.float32),
    "embed_b": GENERATOR.standard_normal((TOKENS, DIM)).astype(np.float32),
    "place": GENERATOR.standard_normal((LONGEST, DIM)).astype(np.float32),
    "out": (6 * GENERATOR.standard_normal((DIM, TOKENS))).astype(np.float32),
}
WORDS = CodeVocabulary(
    GENERATOR.permutation(24)[: LEVELS * SIZE].reshape(LEVELS, SIZE) + 5, 0, begin=(1,), end=(2,), separator=(3,)
)
PROMPT = np.array([4, 9, 4, 28])


def write_graph(weights=WEIGHTS, drop=(), past_type=FLOAT):
    """Each token's row is tanh of the mean over the tokens it sees; the cache has another layout for each half."""
    node = helper.make_node
    nodes = [
        node("Gather", ["place", "positions"], ["at"]),
        node("Gather", ["embed_a", "ids"], ["words_a"]),
        node("Gather", ["embed_b", "ids"], ["words_b"]),
        node("Add", ["words_a", "at"], ["row_a"]),
        node("Mul", ["words_b", "at"], ["row_b"]),
        node("Concat", ["past_a", "row_a"], ["present_a"], axis=1),
        node("Transpose", ["row_b"], ["turned_b"], perm=[0, 2, 1]),
        node("Concat", ["past_b", "turned_b"], ["present_b"], axis=2),
        node("Transpose", ["present_b"], ["back_b"], perm=[0, 2, 1]),
        node("Add", ["present_a", "back_b"], ["values"]),
        node("Softmax", ["mask"], ["weights"], axis=-1),
        node("Squeeze", ["weights", "one"], ["weights_2"]),
        node("MatMul", ["weights_2", "values"], ["mixed"]),
        node("Tanh", ["mixed"], ["hidden"]),
        node("MatMul", ["hidden", "out"], ["logits"]),
    ]
    inputs = {
        "ids": (INT, [1, "n"]),
        "positions": (INT, [1, "n"]),
        "mask": (FLOAT, [1, 1, "n", "S"]),
        "past_a": (past_type, [1, "T", DIM]),
        "past_b": (FLOAT, [1, DIM, "T"]),
    }
    outputs = {
        "logits": (FLOAT, [1, "n", TOKENS]),
        "present_a": (past_type, [1, "S", DIM]),
        "present_b": (FLOAT, [1, DIM, "S"]),
    }
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items() if name not in drop],
        [*constants, onnx.numpy_helper.from_array(np.array([1]), "one")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture(scope="module")
def ranker():
    return SequenceRanker(CachedModel(write_graph()), WORDS)


def all_logits(tokens):
    """(N,) after all tokens, computed from scratch."""
    places = WEIGHTS["place"][: len(tokens)]
    rows = WEIGHTS["embed_a"][tokens] + places + WEIGHTS["embed_b"][tokens] * places
    return np.tanh(rows.mean(0)) @ WEIGHTS["out"]


def written(codes):
    """The tokens of a ranking's codes so far, up to where the next code is due."""
    tokens = [*PROMPT.tolist(), 1]
    for number, code in enumerate(codes):
        tokens.append(int(WORDS.tokens[number % LEVELS, code]))
        if number % LEVELS == LEVELS - 1:
            tokens += [2, 3, 1]
    return tokens


def model(codes):
    return all_logits(written(codes))[WORDS.tokens[len(codes) % LEVELS]].astype(np.float32)


def slate(size, seed=1):
    generator = np.random.default_rng(seed)
    return generator.integers(0, SIZE, (size, LEVELS)).astype(np.uint16), generator.random(size) < 0.9


class TestGenerate:
    @pytest.mark.parametrize("mode", ["greedy", "sample"])
    @pytest.mark.parametrize("size", [0, 1, 2, 30])
    def test_the_ranking_is_that_of_the_model_without_a_cache(self, ranker, mode, size):
        codes, known = slate(size)
        answer = ranker.generate(PROMPT, CandidateTrie(codes, known, SIZE), mode=mode, seed=5, temperature=1.5)
        expected = reference_generate(codes, known, model, mode=mode, seed=5, temperature=1.5)
        assert answer.order.tolist() == expected.ranking(known)
        assert answer.emitted == known.sum()
        items = np.array(expected.local).reshape(-1, LEVELS).sum(1)
        np.testing.assert_allclose(answer.log_probs, items, atol=1e-4)

    def test_forced_codes_cost_no_step(self, ranker):
        codes, known = slate(30)
        answer = ranker.generate(PROMPT, CandidateTrie(codes, known, SIZE))
        expected = reference_generate(codes, known, model)
        assert answer.codes == len(expected.codes)
        assert answer.steps == expected.forced.count(False) - 1 < answer.codes

    def test_the_tail_below_top_n_is_in_the_order_of_score(self, ranker):
        codes, known = slate(30)
        trie = CandidateTrie(codes, known, SIZE)
        answer = ranker.generate(PROMPT, trie, top_n=3)
        expected = reference_generate(codes, known, model, top_n=3)
        assert answer.order.tolist() == expected.ranking(known, ranker.score(PROMPT, trie)[1])
        assert answer.emitted == len(answer.log_probs) == 3

    def test_logits_that_are_not_numbers_are_an_error(self):
        bad = SequenceRanker(CachedModel(write_graph({**WEIGHTS, "out": WEIGHTS["out"] * np.nan})), WORDS)
        codes, known = slate(5)
        for call in (bad.generate, bad.score):
            with pytest.raises(Gr2Error, match=r"output cannot be ranked: logits row 0 column 0 is -?nan"):
                call(PROMPT, CandidateTrie(codes, known, SIZE))


class TestScore:
    @pytest.mark.parametrize("normalization", ["raw", "local"])
    @pytest.mark.parametrize("size", [0, 1, 25])
    def test_one_pass_over_the_trie_equals_a_pass_for_each_node(self, ranker, normalization, size):
        codes, known = slate(size)
        order, scores = ranker.score(PROMPT, CandidateTrie(codes, known, SIZE), normalization=normalization)
        logits = np.array([model(prefix) for prefix in reference_trie(codes, known).prefixes])
        expected_order, expected = reference_score(codes, known, logits, normalization=normalization)
        np.testing.assert_allclose(scores, expected, atol=1e-4)
        assert order.tolist() == expected_order.tolist()

    def test_one_level_needs_no_pass_of_its_own(self):
        words = CodeVocabulary(WORDS.tokens[:1], 0)
        ranker = SequenceRanker(CachedModel(write_graph()), words)
        codes = np.array([[2], [0], [4]], np.uint16)
        order, _ = ranker.score(PROMPT, CandidateTrie(codes, np.ones(3, bool), SIZE))
        logits = all_logits(PROMPT)[words.tokens[0, codes[:, 0]]]
        assert order.tolist() == np.argsort(-logits).tolist()


class TestGraph:
    def test_a_graph_that_cannot_be_loaded_is_refused(self, tmp_path):
        with pytest.raises(BundleError, match="onnxruntime cannot load the graph"):
            CachedModel(b"no graph")
        with pytest.raises(BundleError, match="onnxruntime cannot load the graph"):
            CachedModel(tmp_path / "absent.onnx")

    def test_a_graph_without_an_output_is_refused(self):
        with pytest.raises(BundleError, match="not a decoder graph with a cache: present_b is absent"):
            CachedModel(write_graph(drop=["present_b"]))

    def test_a_file_is_loaded(self, tmp_path, ranker):
        (tmp_path / "graph.onnx").write_bytes(write_graph())
        codes, known = slate(9)
        trie = CandidateTrie(codes, known, SIZE)
        from_file = SequenceRanker(CachedModel(tmp_path / "graph.onnx"), WORDS)
        assert from_file.generate(PROMPT, trie).order.tolist() == ranker.generate(PROMPT, trie).order.tolist()

    def test_a_vocabulary_past_the_models_is_refused(self):
        wrong = CodeVocabulary(WORDS.tokens + 50, 0)
        codes, known = slate(3)
        with pytest.raises(BundleError, match=r"the model has 30 tokens, not token \d+"):
            SequenceRanker(CachedModel(write_graph()), wrong).score(PROMPT, CandidateTrie(codes, known, SIZE))

    @pytest.mark.parametrize("prompt", [np.zeros(0, np.int64), np.zeros((1, 2), np.int64), np.zeros(2, np.int32)])
    def test_a_wrong_prompt_is_named(self, ranker, prompt):
        with pytest.raises(ValueError, match=r"prompt must be int64 \(T,\) with T at least 1, got int"):
            ranker.score(prompt, CandidateTrie(*slate(2), SIZE))


def test_torch_is_not_imported():
    program = "import sys, gr2.serving.generation; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)

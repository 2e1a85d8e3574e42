"""rank_step in Triton's interpreter against the NumPy reference; test_interpreter.py runs this in its own process."""

import numpy as np
import pytest
import torch

from gr2.decoding import CandidateDecoder, CandidateTrie
from gr2.decoding.reference_generate import reference_generate
from gr2.kernels import CandidateTables
from gr2.kernels.device_decoder import DeviceDecoder
from tests.kernels.interpreted import INF, NAN, poison, slate

# The interpreter's arithmetic is NumPy's, which warns of the infinities that masks are made of.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


class TestRankStep:
    @pytest.mark.parametrize(
        ("requests", "candidates", "levels", "level_size", "kind"),
        [
            (2, 9, 3, 4, "normal"),
            (2, 11, 4, 3, "ties"),
            (3, 5, 2, 3, "masks"),
            (2, 6, 1, 20, "normal"),
            (1, 5, 8, 2, "normal"),
        ],
    )
    @pytest.mark.parametrize(
        ("mode", "temperature", "top_n"), [("greedy", 1.0, None), ("sample", 0.5, None), ("sample", 2.0, 2)]
    )
    def test_whole_permutations_are_those_of_the_reference(
        self, requests, candidates, levels, level_size, kind, mode, temperature, top_n
    ):
        generator = np.random.default_rng(candidates)
        codes, known = slate(generator, requests, candidates, levels, level_size)
        table = (
            generator.integers(0, 2, (61, level_size))
            if kind == "ties"
            else generator.standard_normal((61, level_size))
        )
        table = table.astype(np.float32)
        if kind == "masks":
            table[generator.random(table.shape) < 0.4] = -INF

        def model(context):
            return table[hash(context) % 61]

        seeds = [2**64 - 1 - i for i in range(requests)]
        batch = DeviceDecoder("cpu").candidates(CandidateTables.build(codes, known, level_size))
        ours = batch.generate(mode=mode, seeds=seeds, temperature=temperature, top_n=top_n)
        poison(ours._cum, ours.order, ours.codes, ours.forced, ours.local, ours.raw)
        ours.reset()
        while (ours.node >= 0).any():
            contexts = [tuple(ours.codes[i, : ours.lengths[i]].tolist()) for i in range(requests)]
            ours.push(torch.from_numpy(np.stack([model(context) for context in contexts])))
        ours.check()
        scores = generator.integers(0, 3, (requests, candidates)).astype(np.float32)
        ranking = ours.ranking(torch.from_numpy(scores))
        for i in range(requests):
            options = {"mode": mode, "seed": seeds[i], "temperature": temperature, "top_n": top_n}
            expected = reference_generate(codes[i], known[i], model, **options)
            length, forced = int(ours.lengths[i]), np.array(expected.forced, np.bool_)
            assert ours.order[i, : ours.emitted[i]].tolist() == expected.order
            assert ours.codes[i, :length].tolist() == expected.codes
            assert ours.forced[i, :length].tolist() == forced.tolist()
            np.testing.assert_allclose(ours.local[i, :length], expected.local, rtol=1e-5, atol=1e-5)
            raw = np.where(forced, NAN, expected.raw)
            np.testing.assert_allclose(ours.raw[i, :length], raw, rtol=1e-5, atol=1e-5)
            assert ranking[i].tolist() == expected.ranking(known[i], scores[i])

    @pytest.mark.parametrize("slope", [-0.01, 0.01])
    def test_rows_of_several_blocks(self, slope):
        codes = np.arange(0, 4500, 1500, dtype=np.uint16)[:, None]
        known = np.ones(3, np.bool_)
        row = slope * np.arange(4500, dtype=np.float32)
        ours = DeviceDecoder("cpu").candidates(CandidateTables.build(codes[None], known[None], 4500)).generate()
        while (ours.node >= 0).any():
            ours.push(torch.from_numpy(row[None]))
        expected = reference_generate(codes, known, lambda _: row)
        assert ours.order[0].tolist() == expected.order
        np.testing.assert_allclose(ours.raw[0, :2], expected.raw[:2], rtol=1e-5)

    def test_the_largest_logits_have_finite_log_probabilities(self):
        codes, known = np.array([[0], [1], [2]], np.uint16), np.ones(3, np.bool_)
        ours = DeviceDecoder("cpu").candidates(CandidateTables.build(codes[None], known[None], 4))
        ours = ours.generate(mode="sample", seeds=[0], temperature=1e-3)
        theirs = CandidateDecoder(CandidateTrie(codes, known, 4), mode="sample", seed=0, temperature=1e-3)
        for _ in range(2):
            # What is chosen is far below what may be chosen no more.
            row = np.full(4, -3e38, np.float32)
            row[[*theirs.order, 3]] = 3e38
            assert ours.push(torch.from_numpy(row[None])).tolist() == [theirs.push(row)]
        for values, name in ((ours.local, "local"), (ours.raw, "raw")):
            np.testing.assert_allclose(values[0], theirs.log_probs(name), rtol=1e-5)

    def test_codes_since_the_last_decision_are_what_the_context_lacks(self):
        codes = np.array([[[0, 1], [0, 2], [3, 1]]], np.uint16)
        ours = DeviceDecoder("cpu").candidates(CandidateTables.build(codes, np.ones((1, 3), np.bool_), 4)).generate()
        assert (ours.node.tolist(), ours.lengths.tolist()) == ([0], [0])
        assert ours.push(torch.tensor([[0.0, 9.0, 9.0, 1.0]])).tolist() == [3]
        # 3 was chosen; 1 is forced, and then 0 is all that the others begin with.
        assert ours.codes[0, ours.fresh[0] : ours.lengths[0]].tolist() == [3, 1, 0]
        assert ours.push(torch.tensor([[0.0, 0.0, 5.0, 0.0]])).tolist() == [2]
        assert ours.order[0].tolist() == [2, 1, 0]
        assert ours.push(torch.zeros(1, 4)).tolist() == [-1]

    @pytest.mark.parametrize("value", [NAN, INF])
    def test_a_request_with_a_bad_logit_stays_where_it_is(self, value):
        tables = CandidateTables.build(np.arange(3, dtype=np.uint16)[None, :, None], np.ones((1, 3), np.bool_), 4)
        ours = DeviceDecoder("cpu").candidates(tables).generate()
        logits = torch.zeros(1, 4)
        logits[0, 3] = value
        assert ours.push(logits).tolist() == [-1]
        with pytest.raises(ValueError, match="logits row 0 column 3 is NaN or infinite"):
            ours.check()
        assert ours.node.tolist() == [0]
        assert ours.push(torch.zeros(1, 4)).tolist() == [0]

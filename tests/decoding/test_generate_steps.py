import math

import numpy as np
import pytest

from gr2.decoding import CandidateDecoder, CandidateTrie


class TestSteps:
    CODES = np.array([[1, 0], [0, 2], [1, 2], [0, 0]], np.uint16)

    def decoder(self, **options):
        return CandidateDecoder(CandidateTrie(self.CODES, np.ones(4, bool), 3), **options)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_logits_that_are_not_finite_are_named_and_change_nothing(self, value):
        decoder, logits = self.decoder(), np.array([0, 1, value], np.float32)
        for call in (lambda: decoder.push(logits), lambda: decoder.accept(1, logits)):
            with pytest.raises(ValueError, match=r"logits row 0 column 2 is (nan|inf)"):
                call()
        with pytest.raises(ValueError, match="logits row 7 column 2"):
            decoder.push(logits, row=7)
        assert decoder.next()[1].tolist() == [0, 1]
        assert len(decoder.codes) == 0

    def test_ties_go_to_the_lowest_position_that_is_left(self):
        decoder = self.decoder()
        chosen = [decoder.push(np.zeros(3, np.float32)) for _ in range(2)]
        assert chosen == [1, 0]
        assert decoder.order.tolist() == [0]
        assert decoder.push(np.zeros(3, np.float32)) == 0
        assert decoder.order.tolist() == [0]
        assert decoder.push(np.zeros(3, np.float32)) == 2
        assert decoder.order.tolist() == [0, 1]

    def test_masked_codes_are_never_chosen(self):
        logits = np.array([-np.inf, -5, 9], np.float32)
        assert self.decoder(mode="sample").push(logits) == 1
        decoder = self.decoder()
        assert decoder.push(logits) == 1
        assert decoder.log_probs("local").tolist() == [0.0]
        assert decoder.log_probs("raw").tolist() == [pytest.approx(-14.0, abs=1e-4)]
        with pytest.raises(ValueError, match="code 0 is masked"):
            self.decoder().accept(0, logits)

    @pytest.mark.parametrize("mode", ["greedy", "sample"])
    def test_if_all_is_masked_nothing_is_emitted(self, mode):
        decoder = self.decoder(mode=mode)
        assert decoder.push(np.array([-np.inf, -np.inf, 0], np.float32)) == -1
        assert (decoder.node, decoder.done, decoder.order.tolist()) == (-1, True, [])
        assert [part.tolist() for part in decoder.next()] == [[], []]
        assert decoder.ranking(np.array([0, 1, 2, 2], np.float32)).tolist() == [2, 3, 1, 0]

    def test_the_tail_below_top_n_is_in_the_order_of_the_scores(self):
        decoder = self.decoder(top_n=1)
        decoder.push(np.zeros(3, np.float32))
        decoder.push(np.zeros(3, np.float32))
        assert decoder.done
        assert decoder.ranking(np.array([9, 1, 1, 2], np.float32)).tolist() == [0, 3, 1, 2]
        with pytest.raises(ValueError, match="scores are needed: 3 candidates were not generated"):
            decoder.ranking()
        with pytest.raises(ValueError, match="scores row 1 is nan"):
            decoder.ranking(np.array([9, np.nan, 1, 2], np.float32))

    def test_stop_ends_generation_inside_an_item(self):
        decoder = self.decoder()
        decoder.push(np.zeros(3, np.float32))
        decoder.stop()
        assert decoder.done
        assert decoder.next()[0].tolist() == [1]
        assert decoder.ranking(np.zeros(4, np.float32)).tolist() == [0, 1, 2, 3]

    def test_without_logits_no_log_probability_is_known(self):
        decoder = self.decoder()
        decoder.accept(0)
        decoder.accept(2)
        assert np.isnan(decoder.log_probs("local")[:2]).all()
        assert decoder.order.tolist() == [1]

    def test_forced_logits_are_checked(self):
        decoder = CandidateDecoder(CandidateTrie(np.array([[1, 2]], np.uint16), np.ones(1, bool), 3))
        assert decoder.forced_count == 2
        with pytest.raises(ValueError, match=r"float32 \(2, 3\), got float32 \(1, 3\)"):
            decoder.score_forced(np.zeros((1, 3), np.float32))
        with pytest.raises(ValueError, match="logits row 1 column 0 is nan"):
            decoder.score_forced(np.array([[0, 0, 0], [np.nan, 0, 0]], np.float32))
        decoder.score_forced(np.array([[0, 0, 0], [0, 0, -np.inf]], np.float32))
        assert decoder.log_probs("raw").tolist() == [pytest.approx(-math.log(3)), -np.inf]

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda d: d.push(np.zeros(3)), TypeError, r"logits must be float32 \(V,\), got float64 \(3,\)"),
            (lambda d: d.push(np.zeros(4, np.float32)), ValueError, r"float32 \(3,\), got float32 \(4,\)"),
            (lambda d: d.push(np.zeros((1, 3), np.float32)), ValueError, r"got float32 \(1, 3\)"),
            (lambda d: d.accept(2), ValueError, "code 2 is not allowed at level 0"),
            (lambda d: d.accept(3), ValueError, "code must be 0 to 2, got 3"),
            (lambda d: d.accept(-1), ValueError, "code must be 0 to 2, got -1"),
            (lambda d: d.log_probs("global"), ValueError, "'raw' or 'local', got 'global'"),
            (lambda d: d.item_log_probs("global"), ValueError, "'raw' or 'local', got 'global'"),
            (lambda d: d.ranking(np.zeros(4)), TypeError, "scores must be float32"),
            (lambda d: d.ranking(np.zeros(3, np.float32)), ValueError, r"float32 \(4,\), got float32 \(3,\)"),
            (lambda d: d.reset(-1), TypeError, "incompatible function arguments"),
        ],
    )
    def test_wrong_arguments_are_named(self, call, error, message):
        with pytest.raises(error, match=message):
            call(self.decoder())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"mode": "beam"}, "mode must be 'greedy' or 'sample', got 'beam'"),
            ({"top_n": 0}, "top_n must be at least 1, got 0"),
            ({"top_n": -3}, "top_n must be at least 1, got -3"),
            ({"temperature": 0.0}, "temperature must be 0.001 to 1000, got 0.0"),
            ({"temperature": np.nan}, "temperature must be 0.001 to 1000, got nan"),
        ],
    )
    def test_wrong_options_are_named(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.decoder(**options)

    def test_a_finished_decoder_refuses_decisions(self):
        decoder = self.decoder()
        decoder.stop()
        for call in (lambda: decoder.push(np.zeros(3, np.float32)), lambda: decoder.accept(0)):
            with pytest.raises(ValueError, match="no decision is due"):
                call()

    @pytest.mark.parametrize("new", [CandidateDecoder.__new__, object.__new__])
    def test_new_alone_makes_no_object(self, new):
        with pytest.raises(TypeError):
            new(CandidateDecoder)

    @pytest.mark.parametrize("trie", [None, 1, np.zeros((1, 2), np.uint16)])
    def test_what_is_no_trie_is_refused(self, trie):
        with pytest.raises(TypeError):
            CandidateDecoder(trie)

    def test_a_decoder_keeps_its_trie(self):
        decoder = self.decoder()
        np.zeros((4000, 4000), np.float32)  # would reuse the trie's memory
        assert decoder.push(np.zeros(3, np.float32)) == 1

    def test_the_state_is_two_bytes_a_candidate_and_the_codes_allowed(self):
        codes = np.random.default_rng(0).integers(0, 256, (1024, 4)).astype(np.uint16)
        decoder = CandidateDecoder(CandidateTrie(codes, np.ones(1024, bool), 256))
        assert decoder.nbytes <= 2 * 1025 + 6 * 512

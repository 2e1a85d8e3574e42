import numpy as np
import pytest

from gr2.decoding import CatalogTrie, ItemFilter, Retriever

NAN, INF = float("nan"), float("inf")


class TestErrors:
    @pytest.mark.parametrize("normalization", ["raw", "local"])
    @pytest.mark.parametrize(("value", "name"), [(NAN, "NaN"), (-NAN, "NaN"), (INF, r"\+infinity")])
    @pytest.mark.parametrize("level_size", [3, 8, 33, 700])
    def test_a_bad_logit_is_named_and_the_search_stays_where_it_was(self, normalization, value, name, level_size):
        generator = np.random.default_rng(0)
        codes = generator.integers(0, level_size, (400, 2)).astype(np.uint16)
        codes = codes[np.lexsort(codes.T[::-1])]
        retriever = Retriever(3, normalization=normalization)
        retriever.start(CatalogTrie(codes, level_size), 2)
        retriever.step(generator.standard_normal((2, 1, level_size)).astype(np.float32))
        before = retriever.nodes()
        good = generator.standard_normal((2, 3, level_size)).astype(np.float32)
        for batch, beam, column in np.ndindex(2, 3, 3):
            column = (0, level_size // 2, level_size - 1)[column]
            bad = good.copy()
            bad[batch, beam, column] = value
            with pytest.raises(ValueError, match=f"^logits batch {batch} beam {beam} column {column} is {name}$"):
                retriever.step(bad)
            assert np.array_equal(retriever.nodes(), before)
        again = Retriever(3, normalization=normalization)
        again.start(CatalogTrie(codes, level_size), 2)
        assert retriever.level == 1
        retriever.step(good)

    def test_a_bad_logit_beside_masked_ones_is_found(self):
        retriever = Retriever(3)
        retriever.start(CatalogTrie(np.array([[1]], np.uint16), 4))
        for logits, where in [([-INF, 1, -INF, NAN], "3 is NaN"), ([INF, 1, -INF, 0], r"0 is \+infinity")]:
            with pytest.raises(ValueError, match=f"batch 0 beam 0 column {where}"):
                retriever.step(np.array([[logits]], np.float32))

    def test_the_logits_of_dead_beams_are_not_read(self):
        retriever = Retriever(2)
        retriever.start(CatalogTrie(np.array([[1, 1]], np.uint16), 2))
        retriever.step(np.zeros((1, 1, 2), np.float32))
        retriever.step(np.array([[[0, 0], [NAN, INF]]], np.float32))
        assert retriever.finish()[0][0].tolist() == [0, -1]

    @pytest.mark.parametrize(
        ("logits", "error", "message"),
        [
            (np.zeros((1, 1, 4)), TypeError, r"float32 \(B, M, V\), got float64"),
            (np.zeros((1, 4), np.float32), ValueError, r"float32 \(B, M, V\), got float32 \(1, 4\)"),
            (np.zeros((2, 1, 4), np.float32), ValueError, r"level 0 must be float32 \(1, 1, 4\), got \(2, 1, 4\)"),
            (np.zeros((1, 3, 4), np.float32), ValueError, r"level 0 must be float32 \(1, 1, 4\), got \(1, 3, 4\)"),
            (np.zeros((1, 1, 5), np.float32), ValueError, r"level 0 must be float32 \(1, 1, 4\), got \(1, 1, 5\)"),
            ([[[0.0] * 4]], TypeError, "float32"),
        ],
    )
    def test_other_logits_are_refused(self, logits, error, message):
        retriever = Retriever(3)
        retriever.start(CatalogTrie(np.zeros((1, 2), np.uint16), 4))
        with pytest.raises(error, match=message):
            retriever.step(logits)

    def test_steps_out_of_turn_are_refused(self):
        retriever = Retriever(3)
        trie = CatalogTrie(np.zeros((1, 1), np.uint16), 4)
        logits = np.zeros((1, 1, 4), np.float32)
        for call in (retriever.finish, retriever.nodes, lambda: retriever.step(logits)):
            with pytest.raises(RuntimeError, match="not been started"):
                call()
        retriever.start(trie)
        with pytest.raises(RuntimeError, match="not over: 0 of 1 levels are done"):
            retriever.finish()
        retriever.step(logits)
        with pytest.raises(RuntimeError, match="all levels are done"):
            retriever.step(np.zeros((1, 3, 4), np.float32))

    def test_wrong_settings_are_named(self):
        trie, other = CatalogTrie(np.zeros((2, 1), np.uint16), 4), CatalogTrie(np.zeros((2, 1), np.uint16), 4)
        for beams in (0, -1, 4097):
            with pytest.raises(ValueError, match=f"beams must be 1 to 4096, got {beams}"):
                Retriever(beams)
        with pytest.raises(ValueError, match="'raw' or 'local', got 'both'"):
            Retriever(1, normalization="both")
        retriever = Retriever(1)
        for batch in (0, -1, 65537):
            with pytest.raises(ValueError, match=f"batch must be 1 to 65536, got {batch}"):
                retriever.start(trie, batch)
        with pytest.raises(ValueError, match="batch times beams must be at most 16777216, got 65536 times 4096"):
            Retriever(4096).start(trie, 65536)
        foreign = ItemFilter(other)
        for filters, error, message in [
            (foreign, ValueError, "filter 0 is of another trie"),
            ([None, foreign], ValueError, "filter 1 is of another trie"),
            ([None, None, None], ValueError, "one or 2, one for each of the batch, got 3"),
            ([], ValueError, "must not be an empty sequence"),
            ([None, 5], TypeError, "filters 1 must be ItemFilter or None, got int"),
            ("ab", TypeError, "filters must be None, an ItemFilter or a sequence"),
        ]:
            with pytest.raises(error, match=message):
                retriever.start(trie, 2, filters=filters)
        with pytest.raises(TypeError):
            retriever.start(None)

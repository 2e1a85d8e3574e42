import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2.decoding import CatalogTrie, ItemFilter, Retriever
from gr2.decoding.reference_retrieve import ReferenceRetriever

NAN, INF = float("nan"), float("inf")
# Of degree 1 (a single code), of degree V, sparse and with many collisions.
SHAPES = [(1, 1), (1, 6), (2, 2), (2, 40), (3, 3), (3, 300), (4, 2), (4, 4), (5, 2), (8, 3)]


def sorted_rows(codes):
    return codes[np.lexsort(codes.T[::-1])] if len(codes) else codes


class Search:
    """A catalogue with a permitted set, in both implementations."""

    def __init__(self, seed, shape, *, sets=True, full=False):
        self.generator = np.random.default_rng(seed)
        draw = self.generator
        self.levels, self.level_size = shape
        items = int(draw.choice([0, 1, 2, draw.integers(0, 50)]))
        alphabet = self.level_size if full or draw.random() < 0.3 else int(min(draw.integers(1, 5), self.level_size))
        values = draw.choice(self.level_size, alphabet, replace=False)
        self.codes = sorted_rows(draw.choice(values, (items, self.levels)).astype(np.uint16))
        self.allow, self.deny = None, None
        if sets and items and draw.random() < 0.4:
            self.allow = draw.integers(0, items, draw.integers(0, items + 1))
        if sets and items and draw.random() < 0.4:
            self.deny = draw.integers(0, items, draw.integers(0, items + 1))
        self.trie = CatalogTrie(self.codes, self.level_size)
        self.filter = None
        if self.allow is not None or self.deny is not None:
            self.filter = ItemFilter(self.trie, allow=self.allow, deny=self.deny)

    def reference(self, beams, normalization):
        return ReferenceRetriever(self.codes, beams, normalization, self.allow, self.deny)

    def logits(self, width, kind, masked):
        shape = (width, self.level_size)
        if kind == "ties":
            # Exponentials of the differences are exactly 1 or 0, so that both implementations round alike.
            values = -128.0 * self.generator.integers(0, 3, shape)
        else:
            values = {"flat": 0.1, "normal": 2.0, "peaked": 30.0}[kind] * self.generator.standard_normal(shape)
        values = values.astype(np.float32)
        values[self.generator.random(shape) < masked] = -INF
        return values


def ambiguous(reference):
    """Whether the first M + 1 candidates are so near each other that rounding decides."""
    scores = np.array([beam.score for beam in reference.candidates[: reference.width + 1]], np.float64)
    return bool(np.any(-np.diff(scores) <= 1e-5 + 1e-6 * np.abs(scores[1:])))


def assert_same_search(search, beams, normalization, kind, masked):
    retriever = Retriever(beams, normalization=normalization)
    retriever.start(search.trie, filters=search.filter)
    reference = search.reference(beams, normalization)
    for level in range(search.levels):
        logits = search.logits(1 if level == 0 else beams, kind, masked)
        parents, codes, scores = retriever.step(logits[None])
        reference.step(logits)
        expected_parents, expected_codes, expected_scores = reference.rows()
        np.testing.assert_allclose(scores[0], expected_scores, rtol=1e-5, atol=1e-5)
        if kind != "ties" and ambiguous(reference):
            return
        assert np.array_equal(parents[0], expected_parents)
        assert np.array_equal(codes[0], expected_codes)
        assert np.array_equal(retriever.nodes()[0], reference.nodes())
        paths = [list(beam.prefix) for beam in reference.beams]
        assert retriever.paths()[0].tolist() == paths + [[0] * (level + 1)] * (beams - len(paths))
    items, scores = retriever.finish()
    expected_items, expected_scores = reference.finish()
    assert np.array_equal(items[0], expected_items)
    np.testing.assert_allclose(scores[0], expected_scores, rtol=1e-5, atol=1e-5)


class TestAgainstReference:
    @settings(max_examples=max(1_000, settings.default.max_examples), deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        shape=st.sampled_from(SHAPES),
        beams=st.sampled_from([1, 2, 3, 10, 70]),
        normalization=st.sampled_from(["raw", "local"]),
        kind=st.sampled_from(["flat", "normal", "peaked"]),
        masked=st.sampled_from([0.0, 0.0, 0.4]),
    )
    def test_beams_and_items_are_those_of_the_reference(self, seed, shape, beams, normalization, kind, masked):
        assert_same_search(Search(seed, shape), beams, normalization, kind, masked)

    @settings(max_examples=max(1_000, settings.default.max_examples), deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        shape=st.sampled_from(SHAPES),
        beams=st.sampled_from([1, 2, 3, 10, 70]),
        normalization=st.sampled_from(["raw", "local"]),
        masked=st.sampled_from([0.0, 0.4, 1.0]),
    )
    def test_ties_break_by_parent_and_then_by_code(self, seed, shape, beams, normalization, masked):
        assert_same_search(Search(seed, shape), beams, normalization, "ties", masked)

    @settings(max_examples=150, deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        normalization=st.sampled_from(["raw", "local"]),
        kind=st.sampled_from(["normal", "peaked", "ties"]),
    )
    def test_full_nodes_of_many_codes(self, seed, normalization, kind):
        """Degree V, vectors and their tails, and more beams than the ordered list of the best holds."""
        generator = np.random.default_rng(seed)
        size = int(generator.integers(60, 90))
        search = Search(seed, (2, size), sets=False)
        codes = [[first, second] for first in range(size) for second in range(size if first % 29 == 0 else 1)]
        search.codes = np.array(codes, np.uint16)
        search.trie = CatalogTrie(search.codes, search.level_size)
        assert_same_search(search, int(generator.choice([5, 33, 40])), normalization, kind, 0.0)

    @settings(max_examples=300, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 4), normalization=st.sampled_from(["raw", "local"]))
    def test_searches_of_a_batch_do_not_see_each_other(self, seed, batch, normalization):
        search = Search(seed, SHAPES[seed % len(SHAPES)])
        other = ItemFilter(search.trie, deny=np.arange(len(search.codes) // 2))
        filters = [search.filter, None, other, search.filter][:batch]
        together = Retriever(3, normalization=normalization)
        together.start(search.trie, batch, filters=filters)
        alone = [Retriever(3, normalization=normalization) for _ in range(batch)]
        for retriever, permitted in zip(alone, filters, strict=True):
            retriever.start(search.trie, filters=permitted)
        for level in range(search.levels):
            logits = np.stack([search.logits(3 if level else 1, "normal", 0.2) for _ in range(batch)])
            rows = together.step(logits)
            for i, retriever in enumerate(alone):
                for mine, ours in zip(retriever.step(logits[i : i + 1]), rows, strict=True):
                    assert np.array_equal(mine[0], ours[i])
        for i, retriever in enumerate(alone):
            assert np.array_equal(retriever.finish()[0][0], together.finish()[0][i])


class TestAgainstBruteForce:
    @settings(max_examples=max(600, settings.default.max_examples), deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        shape=st.sampled_from(SHAPES),
        normalization=st.sampled_from(["raw", "local"]),
        masked=st.sampled_from([0.0, 0.3]),
    )
    def test_wide_beams_return_all_items_in_the_order_of_their_likelihood(self, seed, shape, normalization, masked):
        """With as many beams as items nothing is cut: the answer is that of scoring each item on its own."""
        search = Search(seed, shape)
        beams = max(1, len(search.codes)) + 3
        table = {}

        def row(prefix):
            return table.setdefault(prefix, search.logits(1, "normal", masked)[0])

        retriever = Retriever(beams, normalization=normalization)
        retriever.start(search.trie, filters=search.filter)
        for level in range(search.levels):
            paths = [tuple(path) for path in retriever.paths()[0].tolist()] if level else [()]
            retriever.step(np.stack([row(path) for path in paths])[None])
        items, scores = retriever.finish()

        permitted = set(range(len(search.codes)) if search.allow is None else search.allow.tolist())
        permitted -= set() if search.deny is None else set(search.deny.tolist())
        expected = {}
        for item in permitted:
            path, total = tuple(search.codes[item].tolist()), 0.0
            for depth, code in enumerate(path):
                logits = row(path[:depth]).astype(np.float64)
                if normalization == "local":
                    alike = [i for i in permitted if tuple(search.codes[i][:depth]) == path[:depth]]
                    logits = np.where(np.isin(np.arange(search.level_size), search.codes[alike, depth]), logits, -INF)
                total += logits[code] - np.logaddexp.reduce(logits) if logits[code] > -INF else -INF
            if total > -INF:
                expected[item] = total
        found = items[0][items[0] >= 0]
        assert set(found.tolist()) == set(expected)
        np.testing.assert_allclose(scores[0][: len(found)], [expected[item] for item in found.tolist()], atol=2e-5)
        assert np.all(np.diff(scores[0][: len(found)]) <= 0)
        assert np.all(items[0][len(found) :] == -1)
        assert np.all(scores[0][len(found) :] == -INF)


def one_step(logits, codes, *, beams=3, level_size=4, **options):
    retriever = Retriever(beams, **options)
    retriever.start(CatalogTrie(np.array(codes, np.uint16), level_size))
    return retriever, retriever.step(np.array(logits, np.float32).reshape(1, 1, level_size))


class TestRules:
    def test_raw_is_the_likelihood_over_all_codes_and_local_over_the_children(self):
        probabilities = np.array([0.1, 0.2, 0.3, 0.4])
        for normalization, expected in [("raw", [0.3, 0.1]), ("local", [0.75, 0.25])]:
            _, (_, codes, scores) = one_step(np.log(probabilities), [[0], [2]], normalization=normalization)
            assert codes[0].tolist() == [2, 0, 0]
            np.testing.assert_allclose(np.exp(scores[0]), [*expected, 0], rtol=1e-6)

    def test_a_lone_child_costs_nothing_in_local(self):
        _, (_, _, scores) = one_step([3, 1, 7, 2], [[1]], normalization="local")
        assert scores[0].tolist() == [0, -INF, -INF]

    def test_a_beam_wider_than_the_items_gives_dead_beams_and_no_items(self):
        retriever, (parents, codes, scores) = one_step([0, 0, 0, 0], [[2]], beams=5)
        assert retriever.nodes()[0].tolist() == [1, -1, -1, -1, -1]
        assert (codes[0].tolist(), parents[0].tolist()) == ([2, 0, 0, 0, 0], [0] * 5)
        assert scores[0, 1:].tolist() == [-INF] * 4
        items, scores = retriever.finish()
        assert items[0].tolist() == [0, -1, -1, -1, -1]
        assert scores[0, 1:].tolist() == [-INF] * 4

    @pytest.mark.parametrize("normalization", ["raw", "local"])
    def test_an_all_masked_row_gives_no_node(self, normalization):
        retriever, (_, _, scores) = one_step([-INF] * 4, [[1], [2]], normalization=normalization)
        assert retriever.nodes()[0].tolist() == [-1, -1, -1]
        assert scores[0].tolist() == [-INF] * 3
        assert retriever.finish()[0][0].tolist() == [-1, -1, -1]

    @pytest.mark.parametrize("normalization", ["raw", "local"])
    def test_masked_children_give_no_node_though_others_are_likely(self, normalization):
        retriever, _ = one_step([5, -INF, -INF, 5], [[1], [2]], normalization=normalization)
        assert retriever.nodes()[0].tolist() == [-1, -1, -1]

    def test_items_of_one_leaf_keep_row_order_and_count_one_each(self):
        retriever, _ = one_step([1, 0, 2, 0], [[0], [0], [2], [2], [2]], beams=4)
        items, scores = retriever.finish()
        assert items[0].tolist() == [2, 3, 4, 0]
        assert scores[0, 0] == scores[0, 2] > scores[0, 3]

    def test_an_empty_catalogue_gives_nothing(self):
        retriever, (_, _, scores) = one_step([1, 0, 2, 0], np.empty((0, 1)))
        assert scores[0].tolist() == [-INF] * 3
        assert retriever.finish()[0][0].tolist() == [-1] * 3

    def test_denying_a_whole_subtree_never_enters_it(self):
        codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.uint16)
        trie = CatalogTrie(codes, 2)
        retriever = Retriever(1)
        retriever.start(trie, filters=ItemFilter(trie, deny=np.array([0, 1])))
        retriever.step(np.array([[[9.0, 0.0]]], np.float32))
        assert retriever.paths()[0].tolist() == [[1]]

    def test_an_empty_allow_set_gives_nothing(self):
        trie = CatalogTrie(np.zeros((3, 1), np.uint16), 2)
        retriever = Retriever(2)
        retriever.start(trie, filters=ItemFilter(trie, allow=np.empty(0, np.int64)))
        retriever.step(np.zeros((1, 1, 2), np.float32))
        assert retriever.finish()[0][0].tolist() == [-1, -1]

    def test_the_largest_level_and_the_extremes_of_float32(self):
        largest = np.finfo(np.float32).max
        codes = np.array([0, 1, 40_000, 65_535], np.uint16)[:, None]
        logits = np.full((1, 1, 65536), -largest, np.float32)
        logits[0, 0, 40_000], logits[0, 0, 7] = largest, -INF
        for normalization in ("raw", "local"):
            retriever = Retriever(4, normalization=normalization)
            retriever.start(CatalogTrie(codes, 65536))
            _, chosen, scores = retriever.step(logits)
            assert chosen[0].tolist() == [40_000, 0, 0, 0]
            # The others' scores lie below the range of float32.
            assert scores[0].tolist() == [0, -INF, -INF, -INF]


class TestThreads:
    def test_the_catalogue_is_swapped_while_searches_run(self, tmp_path, in_threads):
        """A search keeps the trie that it began on; the next one takes what is current by then."""
        generator = np.random.default_rng(0)
        catalogues = [sorted_rows(generator.integers(0, 16, (n, 3)).astype(np.uint16)) for n in (500, 900)]
        rows = [generator.standard_normal((1, width, 16)).astype(np.float32) for width in (1, 5, 5)]

        def search(retriever, trie, between=lambda: None):
            retriever.start(trie)
            del trie
            for logits in rows:
                retriever.step(logits)
                between()
            return retriever.finish()[0][0].tolist()

        for i, codes in enumerate(catalogues):
            CatalogTrie(codes, 16).save(tmp_path / str(i))
        expected = [search(Retriever(5), CatalogTrie(codes, 16)) for codes in catalogues]
        assert expected[0] != expected[1]
        current, wrong = [CatalogTrie.open(tmp_path / "0")], []

        def work(first):
            def swap():
                current[0] = CatalogTrie.open(tmp_path / str(turn % 2))

            retriever = Retriever(5)
            for turn in range(first, first + 100):
                chosen = CatalogTrie.open(tmp_path / str(turn % 2)) if turn % 3 == 0 else current[0]
                number = [500, 900].index(len(chosen))
                if search(retriever, chosen, swap) != expected[number]:
                    wrong.append(turn)

        in_threads(3, work)
        assert not wrong

    def test_threads_that_share_a_retriever_wait_for_each_other(self, in_threads):
        codes = sorted_rows(np.random.default_rng(0).integers(0, 8, (300, 2)).astype(np.uint16))
        trie, retriever, errors = CatalogTrie(codes, 8), Retriever(4), []
        retriever.start(trie)

        def work(seed):
            generator = np.random.default_rng(seed)
            for _ in range(300):
                try:
                    retriever.start(trie, int(generator.integers(1, 4)))
                    retriever.step(np.zeros((retriever.batch, 1, 8), np.float32))
                    retriever.step(np.zeros((retriever.batch, 4, 8), np.float32))
                    retriever.finish()
                except (ValueError, RuntimeError):
                    pass  # another thread began anew in between
                except BaseException as error:
                    errors.append(error)

        in_threads(3, work)
        assert not errors

"""The kernels in Triton's interpreter against the NumPy reference; test_interpreter.py runs this in its own process."""

import numpy as np
import pytest
import torch

from gr2.decoding import CatalogTrie
from gr2.decoding.reference import reference_score
from gr2.decoding.reference_retrieve import ReferenceRetriever
from gr2.kernels import CandidateTables
from gr2.kernels.device_decoder import DeviceDecoder

INF, NAN = np.inf, np.nan
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


# The interpreter's arithmetic is NumPy's, which warns of the infinities that masks are made of.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def poison(*tensors):
    for tensor in tensors:
        tensor.fill_(NAN if tensor.is_floating_point() else 0x7B)


def rounded(values, dtype):
    """The tensor, and what a kernel reads in it."""
    tensor = torch.from_numpy(values.astype(np.float32)).to(DTYPES[dtype])
    return tensor, tensor.float().numpy()


def sorted_rows(codes):
    return codes[np.lexsort(codes.T[::-1])] if len(codes) else codes


class Search:
    """The same searches by the kernels and by the reference."""

    def __init__(self, codes, level_size, beams, *, batch=1, normalization="raw", deny=None):
        decoder = DeviceDecoder("cpu")
        codes = sorted_rows(codes)
        catalog = decoder.catalog(CatalogTrie(codes, level_size))
        denied = [deny if i % 2 == 0 else None for i in range(batch)]
        self.ours = decoder.retriever(beams, normalization=normalization)
        filters = [None if rows is None else decoder.item_filter(catalog, deny=rows) for rows in denied]
        self.ours.start(catalog, batch, filters=filters)
        self.theirs = [ReferenceRetriever(codes, beams, normalization, deny=rows) for rows in denied]
        ours = self.ours
        poison(ours._keys, ours._counts, ours._limits, ours._bests, ours._stage, ours._items, ours._item_scores)
        poison(ours._parents, ours._codes, ours._nodes[1:], ours._scores[1:])

    def step(self, logits, dtype="float32"):
        """False if scores are so near each other that rounding decides."""
        tensor, rows = rounded(logits, dtype)
        parents, codes, scores = self.ours.step(tensor)
        for i, reference in enumerate(self.theirs):
            reference.step(rows[i])
            expected_parents, expected_codes, expected = reference.rows()
            np.testing.assert_allclose(scores[i], expected, rtol=1e-5, atol=1e-5)
            near = np.array([beam.score for beam in reference.candidates[: reference.width + 1]], np.float64)
            if np.any((np.diff(near) < 0) & (np.diff(near) > -1e-5 - 1e-6 * np.abs(near[1:]))):
                return False
            assert parents[i].tolist() == expected_parents.tolist()
            assert codes[i].tolist() == expected_codes.tolist()
            assert self.ours.nodes()[i].tolist() == reference.nodes().tolist()
            paths = [list(beam.prefix) for beam in reference.beams]
            blank = [[0] * self.ours.level] * (reference.width - len(paths))
            assert self.ours.paths()[i].tolist() == paths + blank
        return True

    def finish(self):
        items, scores = self.ours.finish()
        for i, reference in enumerate(self.theirs):
            expected, values = reference.finish()
            assert items[i].tolist() == expected.tolist()
            np.testing.assert_allclose(scores[i], values, rtol=1e-5, atol=1e-5)
        self.ours.check()
        assert self.ours._arrivals.tolist() == [0] * self.ours.batch
        assert self.ours._bounds.tolist() == [torch.iinfo(torch.int64).max] * self.ours.batch


class TestConstrainedStep:
    @pytest.mark.parametrize(
        ("levels", "level_size", "items", "beams", "batch", "dtype"),
        [
            (1, 1, 1, 1, 1, "float32"),
            (3, 7, 60, 4, 2, "float16"),
            (2, 33, 300, 20, 2, "bfloat16"),
            (4, 3, 200, 70, 1, "float32"),
            (8, 2, 90, 5, 1, "float32"),
        ],
    )
    @pytest.mark.parametrize("normalization", ["raw", "local"])
    @pytest.mark.parametrize("kind", ["normal", "ties"])
    def test_whole_searches_are_those_of_the_reference(
        self, levels, level_size, items, beams, batch, dtype, normalization, kind
    ):
        generator = np.random.default_rng(items)
        codes = generator.integers(0, level_size, (items, levels)).astype(np.uint16)
        codes[items // 2 :] = codes[: items - items // 2]
        deny = generator.integers(0, items, items // 3)
        search = Search(codes, level_size, beams, batch=batch, normalization=normalization, deny=deny)
        for level in range(levels):
            shape = (batch, beams if level else 1, level_size)
            # Exponentials of the differences of tied logits are exactly 1 or 0, so that both round alike.
            values = 2 * generator.standard_normal(shape)
            logits = values if kind == "normal" else -128.0 * generator.integers(0, 3, shape)
            logits[generator.random(shape) < 0.2] = -INF
            if not search.step(logits, dtype):
                return
        search.finish()

    @pytest.mark.parametrize("normalization", ["raw", "local"])
    def test_nodes_of_many_children_and_more_keys_than_are_held_at_once(self, normalization, monkeypatch):
        monkeypatch.setattr("gr2.kernels.constrained_step.POOL", 32)
        monkeypatch.setattr("gr2.kernels.constrained_step.BEST_POOL", 32)
        monkeypatch.setattr("gr2.kernels.constrained_step.CHILD_TILE", 64)
        size, beams = 60, 12
        codes = np.array([[first, second] for first in range(size) for second in range(size)], np.uint16)
        for seed, flat in ((0, 1.0), (1, 0.01)):
            search = Search(codes, size, beams, normalization=normalization)
            shape = search.ours._shapes[1]
            assert -(-shape["WIDTH"] // shape["ROWS"]) * shape["KEPT"] > shape["POOL"]
            generator = np.random.default_rng(seed)
            assert search.step(-128.0 * generator.integers(0, 2, (1, 1, size)))
            search.step(flat * generator.standard_normal((1, beams, size)))
            search.finish()

    def test_children_below_the_best_of_other_beams_are_not_kept(self, monkeypatch):
        monkeypatch.setattr("gr2.kernels.constrained_step.CHILD_TILE", 32)
        size, beams = 32, 20
        codes = np.array([[first, second] for first in range(size) for second in range(size)], np.uint16)
        search = Search(codes, size, beams)
        assert search.step(-10.0 * np.arange(size).reshape(1, 1, size))
        assert search.step(np.random.default_rng(0).standard_normal((1, beams, size)))
        # A beam's children are 10 below those of the one before, so that the first beam has all that are wanted.
        assert search.ours._counts[0, 0] >= beams
        assert search.ours._counts[0, 1:beams].tolist() == [0] * (beams - 1)
        search.finish()

    def test_more_places_in_leaves_than_are_numbered_at_once(self):
        # 70 leaves of one item but for the first, which has 16: 16 places each are looked at, 1024 at a time.
        search = Search(np.concatenate([np.zeros(15), np.arange(70)]).astype(np.uint16)[:, None], 70, 70)
        assert search.step(0.1 * np.arange(70.0).reshape(1, 1, 70))
        search.finish()

    @pytest.mark.parametrize("slope", [-0.1, 0.1])
    def test_rows_of_several_blocks(self, slope, monkeypatch):
        monkeypatch.setattr("gr2.kernels.constrained_step.TILE", 16)
        search = Search(np.arange(0, 70, 2, dtype=np.uint16)[:, None], 70, 5)
        # The largest is in the first block that is not masked, or in the last.
        logits = slope * np.arange(70.0).reshape(1, 1, 70)
        logits[0, 0, :20] = -INF
        assert search.step(logits)
        search.finish()

    def test_a_program_of_fewer_children_than_beams_bounds_no_other(self, monkeypatch):
        monkeypatch.setattr("gr2.kernels.constrained_step.CHILD_TILE", 32)
        size, beams = 32, 20
        codes = [[first, second] for first in range(size) for second in range(beams - 1 if first == 0 else 1)]
        search = Search(np.array(codes, np.uint16), size, beams)
        assert search.step(-10.0 * np.arange(size).reshape(1, 1, size))
        assert search.step(np.random.default_rng(0).standard_normal((1, beams, size)))
        assert search.ours._counts[0, :2].tolist() == [beams - 1, 1]
        search.finish()

    @pytest.mark.parametrize("normalization", ["raw", "local"])
    def test_masked_rows_and_an_empty_catalogue_give_no_beam(self, normalization):
        codes = np.array([[0, 1], [2, 1]], np.uint16)
        for items in (codes, codes[:0]):
            search = Search(items, 4, 3, normalization=normalization)
            assert search.step(np.zeros((1, 1, 4)))
            assert search.step(np.full((1, 3, 4), -INF))
            assert search.ours.nodes().tolist() == [[-1, -1, -1]]
            search.finish()

    def test_logits_of_dead_beams_do_not_matter(self):
        search = Search(np.array([[0, 1], [2, 1]], np.uint16), 4, 3)
        assert search.step(np.zeros((1, 1, 4)))
        logits = np.zeros((1, 3, 4))
        logits[0, 2] = NAN
        assert search.step(logits)
        search.finish()

    @pytest.mark.parametrize("normalization", ["raw", "local"])
    @pytest.mark.parametrize("value", [NAN, INF])
    def test_a_bad_logit_is_named_and_its_beam_has_no_children(self, value, normalization):
        codes = np.array([[0, 1], [2, 1]], np.uint16)
        search = Search(codes, 4, 2, batch=2, normalization=normalization)
        search.ours.step(torch.zeros(2, 1, 4))
        logits = torch.zeros(2, 2, 4)
        logits[1, 0, 3] = value
        parents, _, scores = search.ours.step(logits)
        assert parents.tolist() == [[0, 1], [1, 0]]
        assert scores[1, 1] == -INF
        with pytest.raises(ValueError, match="logits batch 1 beam 0 column 3 is NaN or infinite"):
            search.ours.check()
        search.ours.check()

    def test_a_search_begins_anew_on_the_memory_of_the_last(self):
        generator = np.random.default_rng(0)
        codes = sorted_rows(generator.integers(0, 9, (80, 2)).astype(np.uint16))
        search = Search(codes, 9, 6)
        for seed in range(2):
            search.ours.start(search.ours._catalog, 1)
            search.theirs = [ReferenceRetriever(codes, 6)]
            generator = np.random.default_rng(seed)
            for width in (1, 6):
                assert search.step(generator.standard_normal((1, width, 9)))
            search.finish()


def slate(generator, requests, candidates, levels, level_size):
    """Codes with shared paths, and requests with unknown candidates in every place."""
    codes = generator.integers(0, level_size, (requests, candidates, levels)).astype(np.uint16)
    codes[:, candidates // 2 :] = codes[:, : candidates - candidates // 2]
    return codes, generator.random((requests, candidates)) < generator.choice([0.0, 0.7, 1.0], (requests, 1))


class TestTrieScore:
    @pytest.mark.parametrize(
        ("requests", "candidates", "levels", "level_size", "dtype"),
        [
            (1, 1, 1, 1, "float32"),
            (3, 9, 3, 5, "float16"),
            (2, 40, 4, 7, "bfloat16"),
            (2, 63, 2, 70, "float32"),
            (2, 6, 8, 2, "float32"),
            (2, 17, 2, 9, "float32"),
        ],
    )
    @pytest.mark.parametrize("normalization", ["raw", "local"])
    @pytest.mark.parametrize("prior", [True, False])
    def test_scores_and_orders_are_those_of_the_reference(
        self, requests, candidates, levels, level_size, dtype, normalization, prior
    ):
        generator = np.random.default_rng(candidates)
        codes, known = slate(generator, requests, candidates, levels, level_size)
        tables = CandidateTables.build(codes, known, level_size)
        # Small integers, so that many candidates tie.
        logits, rows = rounded(generator.integers(0, 2, (requests, tables.nodes, level_size)), dtype)
        extra = generator.integers(0, 2, (requests, candidates)).astype(np.float32) if prior else None
        batch = DeviceDecoder("cpu").candidates(tables)
        poison(batch._denominators, batch._keys, batch.order, batch.scores)
        given = None if extra is None else torch.from_numpy(extra)
        order, scores = (each.numpy() for each in batch.score(logits, given, normalization=normalization))
        batch.check()
        for i in range(requests):
            expected_order, expected = reference_score(
                codes[i], known[i], rows[i], None if extra is None else extra[i], normalization=normalization
            )
            np.testing.assert_allclose(scores[i], expected, rtol=1e-5, atol=1e-5)
            count = int(known[i].sum())
            assert sorted(order[i].tolist()) == list(range(candidates))
            assert np.all(np.diff(expected[order[i][:count]]) <= 1e-5)
            assert order[i][count:].tolist() == expected_order[count:].tolist()
            # Those of one path and one prior tie exactly, others only up to rounding.
            paths = [(*codes[i, c].tolist(), 0 if extra is None else extra[i, c]) for c in range(candidates)]
            for path in {paths[c] for c in np.flatnonzero(known[i])}:
                alike = [c for c in order[i][:count].tolist() if paths[c] == path]
                assert alike == sorted(alike)

    @pytest.mark.parametrize("slope", [-0.01, 0.01])
    def test_rows_of_several_blocks(self, slope):
        codes, known = np.array([[0], [1500], [4499]], np.uint16), np.ones(3, np.bool_)
        rows = slope * np.arange(4500, dtype=np.float32)[None]
        batch = DeviceDecoder("cpu").candidates(CandidateTables.build(codes[None], known[None], 4500))
        order, scores = batch.score(torch.from_numpy(rows[None]))
        expected_order, expected = reference_score(codes, known, rows)
        assert order[0].tolist() == expected_order.tolist()
        np.testing.assert_allclose(scores[0], expected, rtol=1e-5)

    @pytest.mark.parametrize("inner", [15, 16, 17, 32, 33])
    def test_last_program_of_a_request_ranks_whatever_the_number_of_nodes(self, inner):
        codes = np.stack([np.arange(inner - 1), np.zeros(inner - 1)], axis=1).astype(np.uint16)
        known = np.ones(inner - 1, np.bool_)
        batch = DeviceDecoder("cpu").candidates(CandidateTables.build(codes[None], known[None], 40, nodes=40))
        poison(batch._denominators, batch._keys, batch.order, batch.scores)
        rows = np.random.default_rng(0).standard_normal((40, 40)).astype(np.float32)
        order, scores = batch.score(torch.from_numpy(rows[None]))
        expected_order, expected = reference_score(codes, known, rows[:inner])
        assert order[0].tolist() == expected_order.tolist()
        np.testing.assert_allclose(scores[0], expected, rtol=1e-5)
        assert batch._arrivals.tolist() == [0]

    @pytest.mark.parametrize("prior", [None, torch.tensor([[0.0, -0.0, 0.0, -0.0, 0.0]])])
    def test_ties_of_other_codes_are_in_incoming_order(self, prior):
        codes, known = np.array([[[3], [2], [9], [0], [1]]], np.uint16), np.array([[True, True, False, True, True]])
        batch = DeviceDecoder("cpu").candidates(CandidateTables.build(codes, known, 10))
        assert batch.score(torch.zeros(1, 1, 10), prior)[0].tolist() == [[0, 1, 3, 4, 2]]

    @pytest.mark.parametrize("normalization", ["raw", "local"])
    def test_the_largest_logits_give_finite_scores(self, normalization):
        codes, known = np.array([[0, 0], [1, 0], [1, 1]], np.uint16), np.ones(3, np.bool_)
        rows = np.array([[3e38, -3e38], [0, 1], [3e38, -3e38]], np.float32)
        prior = np.array([0, 0, -3e38], np.float32)
        batch = DeviceDecoder("cpu").candidates(CandidateTables.build(codes[None], known[None], 2))
        given = torch.from_numpy(rows[None]), torch.from_numpy(prior[None])
        order, scores = batch.score(*given, normalization=normalization)
        expected_order, expected = reference_score(codes, known, rows, prior, normalization=normalization)
        assert order[0].tolist() == expected_order.tolist()
        limit = np.finfo(np.float32).max
        np.testing.assert_allclose(scores[0], np.clip(expected, -limit, limit), rtol=1e-5)

    def test_more_room_for_nodes_than_needed_and_other_requests_in_the_same_memory(self):
        generator = np.random.default_rng(0)
        slates = [slate(generator, 2, 8, 2, 5) for _ in range(2)]
        tables = [CandidateTables.build(*each, 5, nodes=20) for each in slates]
        batch = DeviceDecoder("cpu").candidates(tables[0])
        for (codes, known), each in zip(slates, tables, strict=True):
            batch.load(each)
            logits = generator.standard_normal((2, 20, 5)).astype(np.float32)
            _, scores = batch.score(torch.from_numpy(logits))
            for i in range(2):
                expected = reference_score(codes[i], known[i], logits[i])[1]
                np.testing.assert_allclose(scores[i], expected, rtol=1e-5, atol=1e-5)
        with pytest.raises(ValueError, match="tables must be of"):
            batch.load(CandidateTables.build(*slates[0], 5))

    @pytest.mark.parametrize("value", [NAN, INF, -INF])
    def test_a_value_that_is_not_finite_is_named_with_its_request(self, value):
        tables = CandidateTables.build(np.zeros((3, 2, 2), np.uint16), np.ones((3, 2), np.bool_), 4)
        batch = DeviceDecoder("cpu").candidates(tables)
        logits, prior = torch.zeros(3, 2, 4), torch.zeros(3, 2)
        logits[1, 1, 2] = value
        batch.score(logits, prior)
        assert batch.faulty().tolist() == [[False, True, False], [False] * 3]
        with pytest.raises(ValueError, match="request 1: logits row 1 column 2 is NaN or infinite"):
            batch.check()
        prior[2, 1] = value
        batch.score(torch.zeros(3, 2, 4), prior)
        assert batch.faulty().tolist() == [[False] * 3, [False, False, True]]
        with pytest.raises(ValueError, match="request 2: prior row 1 is NaN or infinite"):
            batch.check()
        batch.score(torch.zeros(3, 2, 4), torch.zeros(3, 2))
        batch.check()


def parted(values):
    """Views of equal values whose batches lie apart, and whose rows do."""
    tensor = torch.from_numpy(values)
    apart = torch.full((len(values), *(2 * size for size in values.shape[1:])), NAN)
    apart[(slice(None), *(slice(size) for size in values.shape[1:]))] = tensor
    rows = apart.repeat_interleave(2, dim=-1)[..., ::2]
    views = [each[(slice(None), *(slice(size) for size in values.shape[1:]))] for each in (apart, rows)]
    assert not any(view.is_contiguous() for view in views)
    return [tensor, *views]


def test_logits_need_not_be_contiguous():
    generator, decoder = np.random.default_rng(0), DeviceDecoder("cpu")
    codes, known = slate(generator, 3, 9, 2, 7)
    tables = CandidateTables.build(codes, known, 7)
    catalog = decoder.catalog(CatalogTrie(sorted_rows(codes[0]), 7))
    shapes, results = ((3, tables.nodes, 7), (3, 7), (3, 1, 7)), []
    views = [parted(generator.standard_normal(shape).astype(np.float32)) for shape in shapes]
    for scored, chosen, searched in zip(*views, strict=True):
        batch, retriever = decoder.candidates(tables), decoder.retriever(4)
        retriever.start(catalog, 3)
        found = [*batch.score(scored), batch.generate().push(chosen), *retriever.step(searched)]
        batch.check()
        retriever.check()
        results.append([each.tolist() for each in found])
    assert results[0] == results[1] == results[2]

"""What the kernels' callers refuse, in Triton's interpreter; test_interpreter.py runs this in its own process."""

import numpy as np
import pytest
import torch

from gr2.decoding import CatalogTrie
from gr2.decoding.reference import reference_score
from gr2.kernels import CandidateTables, make_decoder
from gr2.kernels.device_decoder import DeviceDecoder

CODES = np.array([[[0, 1], [0, 2], [3, 1]]] * 2, np.uint16)
TABLES = CandidateTables.build(CODES, np.ones((2, 3), np.bool_), 4)
LOGITS = np.random.default_rng(0).standard_normal((2, TABLES.nodes, 4)).astype(np.float32)
SEARCHED = CatalogTrie(np.arange(4, dtype=np.uint16)[:, None], 4)

# The interpreter's arithmetic is NumPy's, which warns of the infinities that masks are made of.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def begun(codes, beams):
    """A search of sorted codes that are below 4, and its catalogue."""
    decoder = DeviceDecoder("cpu")
    catalog = decoder.catalog(CatalogTrie(codes, 4))
    retriever = decoder.retriever(beams)
    retriever.start(catalog)
    return retriever, catalog


def test_logits_are_checked_before_anything_runs():
    batch = DeviceDecoder("cpu").candidates(
        CandidateTables.build(np.zeros((1, 2, 2), np.uint16), np.ones((1, 2), np.bool_), 4)
    )
    with pytest.raises(TypeError, match="logits must be float32 or float16 or bfloat16, got float64"):
        batch.score(torch.zeros(1, 2, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"logits must be \(1, 2, 4\), got \(1, 2, 5\)"):
        batch.score(torch.zeros(1, 2, 5))
    with pytest.raises(TypeError, match="logits must be an array or a tensor, or have __dlpack__, got list"):
        batch.score([[1.0]])
    with pytest.raises(TypeError, match="prior must be float32, got float16"):
        batch.score(torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.float16))
    with pytest.raises(TypeError, match="filter 0 must be None or this decoder's, got int"):
        DeviceDecoder("cpu").retriever(2).start(DeviceDecoder("cpu").catalog(SEARCHED), filters=1)


def test_what_has_dlpack_is_taken_without_a_copy():
    tables = CandidateTables.build(np.zeros((1, 2, 2), np.uint16), np.ones((1, 2), np.bool_), 4)
    batch = DeviceDecoder("cpu").candidates(tables)
    logits = np.random.default_rng(0).standard_normal((1, 2, 4)).astype(np.float32)
    _, scores = batch.score(logits)
    np.testing.assert_allclose(
        scores[0], reference_score(np.zeros((2, 2), np.uint16), np.ones(2, bool), logits[0])[1], rtol=1e-5
    )


def test_memory_that_is_not_to_be_had_leaves_no_search(monkeypatch):
    search, catalog = begun(np.zeros((2, 1), np.uint16), 2)

    def full(*_, **__):
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(torch, "full", full)
        search.start(catalog, 64)
    with pytest.raises(RuntimeError, match="has not been started"):
        search.step(torch.zeros(64, 1, 4))
    search.start(catalog, 64)
    search.step(torch.zeros(64, 1, 4))


def test_a_search_of_which_a_graph_was_captured_keeps_what_the_graph_reads(monkeypatch):
    retriever, catalog = begun(np.array([[0], [1], [2]], np.uint16), 2)
    decoder = DeviceDecoder("cpu")
    deny, other = (decoder.item_filter(catalog, deny=np.array([row])) for row in (0, 1))
    retriever.start(catalog, 2, filters=[deny, other])
    monkeypatch.setattr("gr2.kernels.device_retriever.capturing", lambda _: True)
    retriever.step(torch.zeros(2, 1, 4))
    monkeypatch.undo()
    for catalog_, batch, filters in (
        (catalog, 1, deny),
        (catalog, 2, [deny, decoder.item_filter(catalog, deny=np.array([0]))]),
        (decoder.catalog(CatalogTrie(np.zeros((1, 1), np.uint16), 4)), 2, None),
    ):
        with pytest.raises(RuntimeError, match="a CUDA graph was captured of this retriever with another"):
            retriever.start(catalog_, batch, filters=filters)
    # The graph itself, replayed, would do what this step does: the memory is the same.
    memory = [each.data_ptr() for each in (*retriever._edges, retriever._permitted, retriever._which)]
    for filters, allowed in (([other, deny], [[0, 2], [1, 2]]), (None, [[0, 1], [0, 1]]), (deny, [[1, 2]] * 2)):
        retriever.start(catalog, 2, filters=filters)
        retriever.step(torch.zeros(2, 1, 4))
        assert retriever.finish()[0].tolist() == allowed
        held = [each.data_ptr() for each in (*retriever._edges, retriever._permitted, retriever._which)]
        assert held == memory


def test_batches_that_no_grid_holds_are_refused():
    tables = CandidateTables.build(np.zeros((65_536, 1, 1), np.uint16), np.ones((65_536, 1), np.bool_), 4)
    with pytest.raises(ValueError, match="requests must be at most 65535 on a GPU, got 65536"):
        DeviceDecoder("cpu").candidates(tables)


def test_a_search_that_is_over_or_not_begun_says_so():
    retriever = DeviceDecoder("cpu").retriever(2)
    with pytest.raises(RuntimeError, match="has not been started"):
        retriever.step(torch.zeros(1, 1, 4))
    search, _ = begun(np.zeros((2, 1), np.uint16), 2)
    with pytest.raises(RuntimeError, match="the search is not over: 0 of 1 levels are done"):
        search.finish()
    search.step(torch.zeros(1, 1, 4))
    with pytest.raises(RuntimeError, match="all levels are done"):
        search.step(torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="beams must be 1 to 1024 on a GPU, got 0"):
        DeviceDecoder("cpu").retriever(0)


@pytest.fixture(params=["host", "device"])
def decoder(request):
    """Either decoder. Without a GPU, the kernels' is that of a device "cpu", which `make_decoder` gives to the core."""
    return make_decoder("cpu") if request.param == "host" else DeviceDecoder("cpu")


def same(ours, theirs):
    """The arrays are equal, but for rounding and the width of integers."""
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-5, atol=1e-6)


def test_one_program_has_one_answer_of_either_decoder():
    """Every call of the interface, with the same tensors."""
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 4, (3, 9, 3)).astype(np.uint16)
    known = np.arange(9) < np.array([9, 1, 6])[:, None]
    tables = CandidateTables.build(codes, known, 4, nodes=20)
    logits = torch.from_numpy(generator.standard_normal((3, tables.nodes, 4)).astype(np.float32))
    prior = torch.from_numpy(generator.standard_normal((3, 9)).astype(np.float32))
    steps = torch.from_numpy(generator.standard_normal((27, 3, 4)).astype(np.float32))
    beams = torch.from_numpy(generator.standard_normal((3, 2, 5, 4)).astype(np.float32))
    trie = CatalogTrie(np.unique(codes.reshape(-1, 3), axis=0), 4)

    def run(decoder):
        yield decoder.score(logits, prior, tables, normalization="local")
        batch = decoder.candidates(CandidateTables.build(codes[::-1].copy(), known, 4, nodes=20))
        batch.load(tables)
        yield batch.score(logits, prior)
        yield batch.fetch()
        batch.check()
        generation = batch.generate(mode="sample", seeds=[1, 2, 3], temperature=0.7, top_n=5)
        for rows in steps:
            yield [generation.push(rows), generation.node, generation.lengths, generation.emitted, generation.fresh]
        generation.check()
        for row, (length, emitted) in enumerate(zip(generation.lengths, generation.emitted, strict=True)):
            record = [generation.codes, generation.forced, generation.local, generation.raw]
            yield [np.asarray(each)[row, : int(length)] for each in record]
            yield [np.asarray(generation.order)[row, : int(emitted)]]
        yield [generation.ranking(prior)]
        retriever, catalog = decoder.retriever(5), decoder.catalog(trie)
        retriever.start(catalog, 2, filters=[None, decoder.item_filter(catalog, deny=np.array([0, 3]))])
        for level, rows in enumerate(beams):
            yield retriever.step(rows if level else rows[:, :1])
            yield [retriever.nodes(), retriever.paths()]
        yield retriever.finish()
        retriever.check()

    for ours, theirs in zip(run(DeviceDecoder("cpu")), run(make_decoder("cpu")), strict=True):
        same(ours, theirs)


class TestBothDecoders:
    """One interface: what one of them refuses, so does the other, in the same words."""

    def test_a_value_that_is_not_finite_fails_its_request_alone(self, decoder):
        batch = decoder.candidates(TABLES)
        for bad, name, where in ((0, "logits", "row 1 column 2"), (1, "prior", "row 2")):
            values, prior = LOGITS.copy(), np.zeros((2, 3), np.float32)
            (values if name == "logits" else prior)[(1, 1, 2) if name == "logits" else (1, 2)] = np.nan
            batch.score(torch.from_numpy(values), torch.from_numpy(prior))
            order, scores, faulty = batch.fetch()
            assert faulty.tolist() == np.asarray(batch.faulty()).tolist()
            assert faulty.tolist() == [[False, bad == 0], [False, bad == 1]]
            expected = reference_score(CODES[0], np.ones(3, bool), LOGITS[0])
            assert order[0].tolist() == expected[0].tolist()
            np.testing.assert_allclose(scores[0], expected[1], rtol=1e-5)
            with pytest.raises(ValueError, match=f"request 1: {name} {where} is [nN]a[nN]"):
                batch.check()
            batch.check()
            assert not np.asarray(batch.faulty()).any()

    def test_requests_of_another_shape_are_not_loaded(self, decoder):
        batch = decoder.candidates(TABLES)
        known = np.ones((2, 3), np.bool_)
        batch.load(CandidateTables.build(CODES, known, 4))
        for codes, marks, size in ((CODES[:1], known[:1], 4), (CODES[:, :2], known[:, :2], 4), (CODES, known, 5)):
            with pytest.raises(ValueError, match=r"^tables must be of \{'requests': 2, .*'level_size': 4\}, got \{"):
                batch.load(CandidateTables.build(np.ascontiguousarray(codes), marks.copy(), size))
        rows = np.asarray(batch.score(torch.from_numpy(LOGITS))[0])
        assert rows.tolist() == np.asarray(decoder.score(torch.from_numpy(LOGITS), None, TABLES)[0]).tolist()

    def test_what_is_no_array_is_refused(self, decoder):
        with pytest.raises(TypeError, match=r"^logits must be an array or a tensor, or have __dlpack__, got list"):
            decoder.candidates(TABLES).score([[1.0]])
        with pytest.raises(TypeError, match=r"^prior must be float32, got float64"):
            decoder.candidates(TABLES).score(torch.from_numpy(LOGITS), torch.zeros(2, 3, dtype=torch.float64))

    def test_names_that_are_none_are_refused(self, decoder):
        for use in (
            lambda: decoder.score(torch.from_numpy(LOGITS), None, TABLES, normalization="soft"),
            lambda: decoder.retriever(2, normalization="soft"),
        ):
            with pytest.raises(ValueError, match=r"^normalization must be 'raw' or 'local', got 'soft'"):
                use()
        with pytest.raises(ValueError, match=r"^mode must be 'greedy' or 'sample', got 'beam'"):
            decoder.candidates(TABLES).generate(mode="beam")

    @pytest.mark.parametrize("rows", [LOGITS[:1], np.concatenate([LOGITS, LOGITS]), LOGITS[:, :1], LOGITS[:, :, :3]])
    def test_logits_of_another_shape_are_refused(self, decoder, rows):
        with pytest.raises(ValueError, match=r"^logits must be \(2, 3, 4\), got \("):
            decoder.score(torch.from_numpy(rows.copy()), None, TABLES)
        with pytest.raises(ValueError, match=r"^logits must be \(2, 4\), got \("):
            decoder.candidates(TABLES).generate().push(torch.from_numpy(rows.copy()))

    def test_another_prior_or_scores_to_rank_by_are_refused(self, decoder):
        for shape in ((1, 3), (2, 2)):
            other = torch.from_numpy(np.zeros(shape, np.float32))
            with pytest.raises(ValueError, match=r"^prior must be \(2, 3\), got \("):
                decoder.score(torch.from_numpy(LOGITS), other, TABLES)
            with pytest.raises(ValueError, match=r"^scores must be \(2, 3\), got \("):
                decoder.candidates(TABLES).generate().ranking(other)
        with pytest.raises(TypeError, match="scores must be float32"):
            decoder.candidates(TABLES).generate().ranking(torch.from_numpy(np.zeros((2, 3))))

    def test_a_score_to_rank_by_that_is_nan_is_named(self, decoder):
        generation = decoder.candidates(TABLES).generate()
        scores = np.zeros((2, 3), np.float32)
        scores[1, 2] = np.nan
        with pytest.raises(ValueError, match=r"request 1: scores row 2 is [nN]a[nN]"):
            generation.ranking(torch.from_numpy(scores))
            generation.check()
        generation.ranking(torch.from_numpy(np.full((2, 3), -np.inf, np.float32)))
        generation.check()

    def test_options_of_a_generation_are_checked(self, decoder):
        batch = decoder.candidates(TABLES)
        for options, message in (
            ({"temperature": 0.0}, "temperature must be 0.001 to 1000, got 0"),
            ({"top_n": 0}, "top_n must be at least 1, got 0"),
            ({"seeds": [1]}, "seeds must be 2, one for each request, got 1"),
            ({"seeds": [1, -1]}, r"seeds must be integers of 0 to 2\^64 - 1, got -1"),
            ({"seeds": [1, 2**64]}, r"seeds must be integers of 0 to 2\^64 - 1, got 18446744073709551616"),
            ({"seeds": [1.5, 1]}, r"seeds must be integers of 0 to 2\^64 - 1, got 1.5"),
        ):
            with pytest.raises(ValueError, match=message):
                batch.generate(**options)
        with pytest.raises(ValueError, match="seeds must be 2, one for each request, got 1"):
            batch.generate().reset([1])

    def test_a_reset_without_seeds_draws_the_same_again(self, decoder):
        generation = decoder.candidates(TABLES).generate(mode="sample", seeds=[2**64 - 1, 5])
        rows = torch.from_numpy(np.zeros((2, 4), np.float32))
        orders = []
        for _ in range(2):
            for _ in range(3):
                generation.push(rows)
            orders.append(np.asarray(generation.order).tolist())
            generation.reset()
        assert orders[0] == orders[1]

    def test_a_bad_logit_keeps_no_other_request_from_going_on(self, decoder):
        generation = decoder.candidates(TABLES).generate()
        rows = LOGITS[:, 0].copy()
        rows[0, 1] = np.nan
        with pytest.raises(ValueError, match=r"logits row 0 column 1 is [nN]a[nN]"):
            generation.push(torch.from_numpy(rows))
            generation.check()
        assert np.asarray(generation.lengths).tolist() == [0, 3]

    def test_rows_of_items_are_checked(self, decoder):
        catalog = decoder.catalog(SEARCHED)
        for rows in (np.array([0.5]), np.array([1], np.int32), np.array([True]), [1]):
            with pytest.raises(TypeError, match=r"deny must be int64 \(n,\) of item rows, got (float|int|bool|list)"):
                decoder.item_filter(catalog, deny=rows)
        with pytest.raises(ValueError, match=r"allow must be int64 \(n,\) of item rows, got int64 \(1, 1\)"):
            decoder.item_filter(catalog, allow=np.array([[1]]))
        for row in (-1, 4):
            with pytest.raises(ValueError, match=f"allow row 1 is {row}, the catalogue has 4 items"):
                decoder.item_filter(catalog, allow=np.array([0, row]))

    def test_a_search_is_asked_before_its_time(self, decoder):
        retriever = decoder.retriever(2)
        retriever.check()
        for ask in (retriever.nodes, retriever.paths, retriever.finish):
            with pytest.raises(RuntimeError, match="the search has not been started"):
                ask()
        other = decoder.catalog(CatalogTrie(np.zeros((1, 1), np.uint16), 4))
        catalog = decoder.catalog(SEARCHED)
        retriever.start(catalog, batch=3)
        assert np.asarray(retriever.paths()).shape == (3, 1, 0)
        assert np.asarray(retriever.nodes()).tolist() == [[0]] * 3
        with pytest.raises(RuntimeError, match="the search is not over: 0 of 1 levels are done"):
            retriever.finish()
        with pytest.raises(ValueError, match=r"batch must be .*, got 0"):
            retriever.start(catalog, 0)
        with pytest.raises(ValueError, match="filter 1 is of another"):
            retriever.start(catalog, 2, filters=[None, decoder.item_filter(other)])
        with pytest.raises(TypeError):
            decoder.retriever(1.5)

    @pytest.mark.parametrize(("requests", "candidates"), [(0, 3), (2, 0), (0, 0)])
    def test_nothing_to_rank_is_ranked(self, decoder, requests, candidates):
        codes, known = np.zeros((requests, candidates, 2), np.uint16), np.ones((requests, candidates), np.bool_)
        tables = CandidateTables.build(codes, known, 4, nodes=20)
        logits = torch.from_numpy(np.zeros((requests, tables.nodes, 4), np.float32))
        order, scores = decoder.score(logits, None, tables)
        assert np.asarray(order).shape == np.asarray(scores).shape == (requests, candidates)
        generation = decoder.candidates(tables).generate()
        assert np.asarray(generation.node).tolist() == [-1] * requests
        assert np.asarray(generation.ranking()).shape == (requests, candidates)
        generation.check()

"""What the kernels' callers refuse, in Triton's interpreter; test_interpreter.py runs this in its own process."""

import numpy as np
import pytest
import torch

from gr2.decoding import CatalogTrie
from gr2.decoding.reference import reference_score
from gr2.kernels import CandidateTables
from gr2.kernels.device_decoder import DeviceDecoder

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
    with pytest.raises(TypeError, match="logits must be float32, float16 or bfloat16, got float64"):
        batch.score(torch.zeros(1, 2, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"logits must be \(1, 2, 4\), got \(1, 2, 5\)"):
        batch.score(torch.zeros(1, 2, 5))
    with pytest.raises(ValueError, match="temperature must be"):
        batch.generate(temperature=0)
    with pytest.raises(ValueError, match="top_n must be at least 1"):
        batch.generate(top_n=0)
    with pytest.raises(ValueError, match="seeds must be 1"):
        batch.generate(seeds=[1, 2])


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
    with pytest.raises(RuntimeError, match="at level 0 of 1"):
        search.finish()
    search.step(torch.zeros(1, 1, 4))
    with pytest.raises(RuntimeError, match="all levels are done"):
        search.step(torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="beams must be 1 to 1024 on a GPU, got 0"):
        DeviceDecoder("cpu").retriever(0)

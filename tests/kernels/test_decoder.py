import inspect
import subprocess
import sys

import numpy as np
import pytest

from gr2.decoding import CandidateDecoder, CandidateTrie, CatalogTrie, ItemFilter, Retriever
from gr2.errors import ConfigError, MissingExtraError
from gr2.kernels import CandidateTables, HostDecoder, make_decoder


class TestHost:
    def test_a_batch_is_scored_as_each_of_its_requests(self):
        generator = np.random.default_rng(0)
        codes = generator.integers(0, 5, (3, 7, 3)).astype(np.uint16)
        known = generator.random((3, 7)) < 0.8
        tables = CandidateTables.build(codes, known, 5)
        logits = generator.standard_normal((3, tables.nodes, 5)).astype(np.float32)
        prior = generator.standard_normal((3, 7)).astype(np.float32)
        for normalization in ("raw", "local"):
            for given in (prior, None):
                order, scores = make_decoder("cpu").score(logits, given, tables, normalization=normalization)
                for i in range(3):
                    trie = CandidateTrie(codes[i], known[i], 5)
                    own = None if given is None else given[i]
                    expected = trie.score(logits[i, : trie.node_count], own, normalization=normalization)
                    assert order[i].tolist() == expected[0].tolist()
                    assert scores[i].tolist() == expected[1].tolist()

    def test_a_bad_value_is_named_with_its_request(self):
        tables = CandidateTables.build(np.zeros((2, 1, 1), np.uint16), np.ones((2, 1), np.bool_), 3)
        logits = np.zeros((2, 1, 3), np.float32)
        logits[1, 0, 2] = np.nan
        with pytest.raises(ValueError, match="request 1: logits row 0 column 2 is nan"):
            make_decoder().score(logits, None, tables)

    @pytest.mark.parametrize("mode", ["greedy", "sample"])
    def test_a_batch_is_generated_as_each_of_its_requests(self, mode):
        generator = np.random.default_rng(0)
        codes = generator.integers(0, 5, (3, 7, 3)).astype(np.uint16)
        known = np.arange(7) < np.array([7, 0, 4])[:, None]
        batch = make_decoder().candidates(CandidateTables.build(codes, known, 5))
        ours = batch.generate(mode=mode, seeds=[1, 2, 3], temperature=0.5, top_n=3)
        ours.reset([4, 5, 6])
        theirs = [
            CandidateDecoder(CandidateTrie(codes[i], known[i], 5), mode=mode, seed=4 + i, temperature=0.5, top_n=3)
            for i in range(3)
        ]
        while (ours.node >= 0).any():
            assert ours.node.tolist() == [each.node for each in theirs]
            logits = generator.standard_normal((3, 5)).astype(np.float32)
            chosen = ours.push(logits).tolist()
            assert chosen == [-1 if each.done else each.push(row) for each, row in zip(theirs, logits, strict=True)]
            for i, each in enumerate(theirs):
                assert ours.codes[i, ours.fresh[i] : ours.lengths[i]].tolist() == each.next()[0].tolist()
                assert ours.order[i, : ours.emitted[i]].tolist() == each.order.tolist()
                length = ours.lengths[i]
                assert ours.forced[i, :length].tolist() == each.forced.tolist()
                assert ours.local[i, :length].tolist() == each.log_probs("local").tolist()
                np.testing.assert_array_equal(ours.raw[i, :length], each.log_probs("raw"))
        scores = generator.standard_normal((3, 7)).astype(np.float32)
        assert ours.ranking(scores).tolist() == [
            each.ranking(row).tolist() for each, row in zip(theirs, scores, strict=True)
        ]
        with pytest.raises(ValueError, match="seeds must be 3"):
            batch.generate(seeds=[1])

    def test_it_retrieves_by_the_core(self):
        decoder = make_decoder("cpu")
        trie = CatalogTrie(np.arange(4, dtype=np.uint16)[:, None], 4)
        retriever = decoder.retriever(2, normalization="local")
        permitted = decoder.item_filter(decoder.catalog(trie), deny=np.array([3]))
        assert isinstance(permitted, ItemFilter)
        retriever.start(trie, filters=permitted)
        theirs = Retriever(2, normalization="local")
        theirs.start(trie, filters=permitted)
        logits = np.arange(4, dtype=np.float32)[None, None]
        for ours, expected in zip(retriever.step(logits), theirs.step(logits), strict=True):
            assert ours.tolist() == expected.tolist()
        assert retriever.finish()[0].tolist() == theirs.finish()[0].tolist() == [[2, 1]]
        assert (retriever.beams, retriever.batch, retriever.level) == (2, 1, 1)
        assert retriever.nodes().tolist() == theirs.nodes().tolist()
        assert retriever.paths().tolist() == theirs.paths().tolist()
        retriever.check()

    def test_both_decoders_make_objects_of_one_interface(self):
        pytest.importorskip("triton")
        from gr2.kernels.device_candidates import DeviceCandidates, DeviceGeneration
        from gr2.kernels.device_decoder import DeviceDecoder
        from gr2.kernels.device_retriever import DeviceRetriever
        from gr2.kernels.host import HostCandidates, HostGeneration
        from gr2.kernels.host_retriever import HostRetriever

        def methods(kind):
            found = {name: value for name, value in vars(kind).items() if callable(value) and not name.startswith("_")}
            signatures = {name: inspect.signature(value).parameters.values() for name, value in found.items()}
            return {name: [(each.name, each.kind, each.default) for each in own] for name, own in signatures.items()}

        pairs = [(HostDecoder, DeviceDecoder), (HostRetriever, DeviceRetriever)]
        pairs += [(HostCandidates, DeviceCandidates), (HostGeneration, DeviceGeneration)]
        for host, device in pairs:
            assert methods(host) == methods(device)


class TestMakeDecoder:
    def test_the_model_for_batches_takes_its_decoder_by_where_its_logits_are(self, tmp_path, monkeypatch):
        pytest.importorskip("torch")
        from gr2.bundle import Bundle
        from gr2.export.random_bundle import write_random_bundle
        from gr2.serving.models import device_model
        from gr2.serving.models.batcher import BatchLimits

        asked = []
        monkeypatch.setattr(device_model, "make_decoder", lambda device: asked.append(device) or make_decoder(device))
        bundle = Bundle.load(write_random_bundle(tmp_path / "bundle", items=50, level_size=16, dim=8))
        model = device_model.DeviceModel(bundle, "cpu", limits=BatchLimits())
        model.close()
        assert asked == ["cpu"]
        assert isinstance(model._ranking._decoder, HostDecoder)

    def test_what_lies_in_memory_is_taken_whoever_holds_it(self):
        torch = pytest.importorskip("torch")
        tables = CandidateTables.build(np.array([[[1], [0], [2]]], np.uint16), np.ones((1, 3), np.bool_), 4)
        logits = torch.arange(4.0)[None, None]
        order, _ = make_decoder().score(logits, torch.zeros(1, 3), tables)
        assert order.tolist() == [[2, 0, 1]]
        with pytest.raises(ValueError, match="logits must be in memory, of a dtype that NumPy has"):
            make_decoder().score(logits.bfloat16(), None, tables)

    def test_a_device_that_is_not_there_is_named(self, monkeypatch):
        torch = pytest.importorskip("torch")
        pytest.importorskip("triton")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        with pytest.raises(ConfigError, match=r"device 'cuda:1' is not there: .* sees 1 CUDA devices"):
            make_decoder("cuda:1")
        for device in ("gpu", "mps"):
            with pytest.raises(ConfigError, match=f'device must be "cpu", "cuda" or "cuda:N", got \'{device}\''):
                make_decoder(device)

    def test_without_triton_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "gr2.kernels.device_decoder", None)
        with pytest.raises(
            MissingExtraError, match=r"decoding on 'cuda' needs the 'gpu' extra .* pip install 'gr2\[gpu\]'"
        ):
            make_decoder("cuda")

    def test_the_cpu_needs_neither_torch_nor_triton(self):
        code = "import sys; from gr2.kernels import make_decoder as m; m()\nprint({'torch', 'triton'} & {*sys.modules})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "set()"

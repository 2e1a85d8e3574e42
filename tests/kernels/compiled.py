"""Every kernel compiled for three generations of GPU; test_ahead.py runs this in a process of its own."""

import itertools
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.kernels.machine_code import SHARED, compile_level, inspect
from gr2.bundle import Bundle
from gr2.decoding import CatalogTrie
from gr2.errors import ConfigError
from gr2.export.random_bundle import write_random_bundle
from gr2.kernels import CandidateTables
from gr2.kernels.ahead import TARGETS, compile_kernels, compile_only, compile_searches
from gr2.kernels.constrained_step import constrained_step_kernel
from gr2.kernels.device_decoder import DeviceDecoder
from gr2.kernels.leaf_items import leaf_items_kernel
from gr2.kernels.trie_score import trie_score_kernel
from gr2.serving.engine import Engine
from gr2.serving.models.batch_ranking import BatchRanking
from gr2.serving.models.batcher import BatchLimits
from gr2.serving.models.device_model import DeviceModel


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


# Codes of a level, beams, and the most children of a node: ptxas, left to itself, spills in most of these.
LEVELS = [(256, 20, 256), (256, 70, 256), (2048, 10, 2048), (2048, 50, 2048), (2048, 65, 2048), (2048, 70, 1024)]
LEVELS += [(2048, 70, 128), (2048, 70, 64)]


def search(decoder, level_size, beams, dtype, **options):
    """A search whose nodes have up to all codes, at last one."""
    codes = [[first, second, 0] for first in range(level_size) for second in range(level_size if first == 0 else 1)]
    catalog = decoder.catalog(CatalogTrie(np.array(codes, np.uint16), level_size))
    retriever = decoder.retriever(beams, **options)
    retriever.start(catalog, 2, filters=decoder.item_filter(catalog, deny=np.arange(2)) if options else None)
    for level in range(3):
        retriever.step(torch.zeros((2, beams if level else 1, level_size), dtype=dtype))
    retriever.finish()


@pytest.mark.parametrize("target", SHARED)
def test_every_kernel_fits_its_target_without_a_spill(target, record_property):
    with compile_only(target) as (launch, done):
        decoder = DeviceDecoder("cpu", launch=launch)
        search(decoder, 256, 10, torch.float32)
        search(decoder, 256, 1024, torch.float32)
        search(decoder, 2048, 70, torch.bfloat16, normalization="local")
        for level_size, beams, widest in LEVELS:
            compile_level(decoder, level_size, beams, widest)
        compile_level(decoder, 2048, 70, 256, other=True)
        for candidates, normalization in ((100, "raw"), (1024, "local")):
            codes = np.zeros((2, candidates, 4), np.uint16)
            batch = decoder.candidates(CandidateTables.build(codes, np.ones((2, candidates), np.bool_), 256))
            batch.score(torch.zeros(2, 4, 256), torch.zeros(2, candidates), normalization=normalization)
        for mode in ("greedy", "sample"):
            batch.generate(mode=mode).push(torch.zeros(2, 256, dtype=torch.float16))
    assert {each.kernel for each in done} == {
        "constrained_step_kernel",
        "leaf_items_kernel",
        "rank_step_kernel",
        "trie_score_kernel",
    }
    codes = [inspect(each, target) for each in done]
    for name, value in {
        "target": target,
        "variants": len(codes),
        "registers": max(code.registers for code in codes),
        "warps": min(code.warps / code.designed for code in codes if code.designed),
        "shared": max(code.shared for code in codes),
        "limit": SHARED[target],
        "spills": sum(len(code.spills) for code in codes),
    }.items():
        record_property(name, value)
    for code in codes:
        assert (code.local, code.spills) == (0, ()), code
        assert code.warps >= code.designed, code
        assert code.shared <= SHARED[target], code
        assert code.compiled.result.metadata.target == GPUTarget("cuda", int(target[3:]), 32)


def test_warps_on_a_multiprocessor_follow_from_registers():
    with compile_only("sm_90") as (launch, done):
        compile_level(DeviceDecoder("cpu", launch=launch), 256, 70, 16)
    code = inspect(done[0], "sm_90")
    assert code.compiled.result.metadata.num_warps == 8
    assert (code.designed, code.local, code.spills) == (24, 0, ())
    # Of 65,536 registers a program takes 256 times as many as a thread has, in steps of 8.
    held = {registers: replace(code, registers=registers).warps for registers in (32, 65, 80, 81, 128, 129, 255)}
    assert held == {32: 64, 65: 24, 80: 24, 81: 16, 128: 16, 129: 8, 255: 8}


def test_batches_of_any_size_have_the_same_kernels():
    trie = CatalogTrie(np.array([[0, 1, 2], [3, 4, 5]], np.uint16), 16)
    with compile_only("sm_90") as (launch, done):
        decoder = DeviceDecoder("cpu", launch=launch)
        catalog = decoder.catalog(trie)
        for batch in (1, 2, 3, 32):
            retriever = decoder.retriever(5)
            retriever.start(catalog, batch)
            for level in range(3):
                retriever.step(torch.zeros((batch, 5 if level else 1, 16)))
            retriever.finish()
    # The first level, the others, and the items.
    assert len({each.result.hash for each in done}) == 3


def test_rows_are_read_sixteen_bytes_at_a_time(tmp_path):
    with compile_only("sm_90") as (launch, done):
        search(DeviceDecoder("cpu", launch=launch), 256, 10, torch.float32)
    for each in done:
        if each.kernel == "constrained_step_kernel":
            assert "ld.global.v4" in each.result.asm["ptx"]


def test_a_kernel_that_is_in_the_folder_is_not_compiled_again(cache, tmp_path):
    command = ["import sys, pathlib, triton", "hits = []"]
    command += ["triton.knobs.compilation.listener = lambda **seen: hits.append(seen['cache_hit'])"]
    command += ["from gr2.kernels.ahead import compile_kernels"]
    command += ["compile_kernels('sm_90', levels=2, level_size=16, candidates=16, folder=pathlib.Path(sys.argv[1]))"]
    command += ["print(len(hits), sum(hits))"]
    counts = []
    for _ in range(2):
        argv = ["python", "-c", "\n".join(command), tmp_path / "folder"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        counts.append([int(word) for word in done.stdout.split()])
    (compiled, before), (looked_up, hits) = counts
    assert compiled == looked_up == hits > 0
    assert before < compiled
    assert not cache.exists()


def compile_small(folder):
    """How many of two kernels were found in the folder, by a process that has not met them."""
    for kernel in (constrained_step_kernel, leaf_items_kernel):
        kernel.device_caches.clear()
    hits = []
    with triton.knobs.compilation.scope(), triton.knobs.cache.scope(), compile_only("sm_90") as (launch, done):
        triton.knobs.compilation.listener = lambda **seen: hits.append(seen["cache_hit"])
        triton.knobs.cache.dir = str(folder)
        decoder = DeviceDecoder("cpu", launch=launch)
        retriever = decoder.retriever(2)
        retriever.start(decoder.catalog(CatalogTrie(np.zeros((1, 1), np.uint16), 16)))
        retriever.step(torch.zeros(1, 1, 16))
        retriever.finish()
    assert [each.result.asm["cubin"][:4] for each in done] == [b"\x7fELF"] * 2
    return sum(hits)


def test_a_folder_may_be_moved(tmp_path):
    assert compile_small(tmp_path / "built") == 0
    (tmp_path / "built").rename(tmp_path / "served")
    assert compile_small(tmp_path / "served") == 2


@pytest.mark.parametrize("suffix", ["cubin", "json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:50])])
def test_what_a_copy_has_left_out_is_compiled_again(suffix, damage, tmp_path):
    compile_small(tmp_path)
    (damaged,) = tmp_path.glob(f"*/leaf_items_kernel.{suffix}")
    damage(damaged)
    assert [compile_small(tmp_path), compile_small(tmp_path)] == [1, 2]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
def test_kernels_are_started_without_a_compiler(tmp_path, monkeypatch):
    """The driver's library is one of its name here, whose functions do nothing."""
    compile_kernels("sm_90", levels=2, level_size=16, candidates=16, folder=tmp_path / "built")
    (tmp_path / "built").rename(tmp_path / "served")
    source = Path(triton.__file__).parent.joinpath("backends", "nvidia", "driver.c").read_text()
    functions = tmp_path / "functions.c"
    called = sorted(set(re.findall(r"\bcu[A-Z]\w*(?=\()", source)))
    functions.write_text("\n".join(f"void {name}(void) {{}}" for name in called))
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, functions], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("CC", "/bin/false")
    command = "from triton.backends.nvidia.driver import CudaUtils; print(CudaUtils().launch)"
    for folder, code in (("served", 0), ("empty", 1)):
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / folder))
        assert subprocess.run([sys.executable, "-c", command], capture_output=True, check=False).returncode == code


def test_without_a_compiler_a_line_says_what_is_left_to_the_server(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CC", "/bin/false")
    compile_kernels("sm_90", levels=1, level_size=16, candidates=16, folder=tmp_path)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("Triton's launcher is left to the server, which needs a C compiler for it")


def test_a_server_ranks_with_what_was_compiled_ahead(tmp_path, monkeypatch):
    """Its batches go the whole way but for the start of the kernel, from a folder that was moved."""
    path = write_random_bundle(tmp_path / "bundle", items=300, levels=3, level_size=10, dim=8)
    compile_kernels("sm_90", levels=3, level_size=10, candidates=32, folder=tmp_path / "built")
    (tmp_path / "built").rename(tmp_path / "served")
    files = {*tmp_path.joinpath("served").rglob("*")}
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "served"))
    hits, bundle = [], Bundle.load(path)
    engine, model = Engine(bundle), DeviceModel(bundle, "cpu", limits=BatchLimits(8, 500.0, 64))
    trie_score_kernel.device_caches.clear()
    with triton.knobs.compilation.scope(), compile_only("sm_90") as (launch, _):
        triton.knobs.compilation.listener = lambda **seen: hits.append(seen["cache_hit"])
        model._ranking._decoder = DeviceDecoder("cpu", launch=launch)
        for candidates in ((1,), (8, 9, 3), (20, 32), (17,) * 8):
            model.run([engine._example(5, count) for count in candidates])
    model.close()
    engine.close()
    assert hits
    assert all(hits)
    assert files == {*tmp_path.joinpath("served").rglob("*")}


def test_no_request_needs_a_kernel_that_warm_up_has_not_loaded(tmp_path, monkeypatch):
    """An engine that is started for a GPU, but that its kernels are only compiled."""
    path = write_random_bundle(tmp_path / "bundle", items=300, levels=3, level_size=10, dim=8)
    monkeypatch.setattr("gr2.serving.engine.choose_device", lambda wanted, _: wanted)
    with compile_only("sm_90") as (launch, done):

        class Compiling(DeviceModel):
            def __init__(self, bundle, _, **rest):
                super().__init__(bundle, "cpu", **rest)
                self._ranking = BatchRanking(self._spec, DeviceDecoder("cpu", launch=launch))

        monkeypatch.setattr("gr2.serving.engine.DeviceModel", Compiling)
        engine = Engine(path, device="cuda", batches=BatchLimits(8, 500.0, 64))
        loaded = {each.result.hash for each in done}
        done.clear()
        for candidates in ((1,), (7,), (9, 16), (33, 2, 50), (100,) * 8, (65,), (129,), (1000, 3)):
            engine._model.run([engine._example(5, count) for count in candidates])
        engine.close()
    assert {each.result.hash for each in done} <= loaded
    assert done


@pytest.mark.parametrize("level_size", [10, 16])
def test_batches_of_any_shape_find_their_kernels_compiled_ahead(level_size):
    """Rows of 10 codes begin at 16 bytes or do not."""
    ahead = compile_kernels("sm_90", levels=2, level_size=level_size, candidates=16)
    with compile_only("sm_90") as (launch, done):
        decoder = DeviceDecoder("cpu", launch=launch)
        for requests, candidates, nodes in itertools.product((1, 2, 3), (1, 16), (2, 3, 4, 5, 8, 11, 12, 15, 32)):
            codes, known = np.zeros((requests, candidates, 2), np.uint16), np.ones((requests, candidates), np.bool_)
            batch = decoder.candidates(CandidateTables.build(codes, known, level_size, nodes=nodes))
            logits = torch.zeros(requests, nodes, level_size)
            batch.score(logits)
            batch.score(logits, torch.zeros(requests, candidates))
            for mode in ("greedy", "sample"):
                generation = batch.generate(mode=mode)
                generation.push(logits[:, 0])
                generation.push(logits[:, 1])
                generation.push(torch.zeros(requests, level_size))
    assert {each.result.hash for each in done} == {each.result.hash for each in ahead}


@pytest.mark.parametrize("level_size", [12, 16])
def test_searches_of_any_batch_find_their_kernels_compiled_ahead(level_size):
    trie = CatalogTrie(np.array([[0, 1], [0, 3], [3, 4], [3, 4]], np.uint16), level_size)
    ahead = compile_searches("sm_90", trie, beams=[3])
    with compile_only("sm_90") as (launch, done):
        decoder = DeviceDecoder("cpu", launch=launch)
        catalog = decoder.catalog(trie)
        deny, allow = (decoder.item_filter(catalog, **{name: np.arange(2)}) for name in ("deny", "allow"))
        for batch, filters in ((1, None), (1, deny), (2, [deny, None]), (32, None), (3, [deny, allow, None])):
            retriever = decoder.retriever(3)
            retriever.start(catalog, batch, filters=filters)
            for level in range(2):
                retriever.step(torch.zeros((batch, 3 if level else 1, level_size)))
            retriever.finish()
    assert {each.result.hash for each in done} == {each.result.hash for each in ahead}


def test_what_is_compiled_ahead_is_what_triton_compiles_for_the_same_signature():
    """The key of a launch is the hash of source, signature, constants, alignments, target and options."""
    with compile_only("sm_80") as (launch, done):
        search(DeviceDecoder("cpu", launch=launch), 16, 4, torch.float32)
    ahead = next(each for each in done if each.kernel == "leaf_items_kernel")
    pointers = {"offsets": "*i32", "permitted": "*i32", "which": "*i32", "nodes": "*i32", "node_scores": "*fp32"}
    signature = {**pointers, "items": "*i64", "scores": "*fp32", "permitted_stride": "i32"}
    constants = {name: ahead.sizes[name] for name in ("BEAMS", "LEAF", "BLOCK", "FILTERED")}
    names = leaf_items_kernel.arg_names
    signature = {name: signature.get(name, "constexpr") for name in names}
    aligned = [["tt.divisibility", 16]]
    parts = {"nodes", "node_scores"}
    attributes = {
        (at,): aligned if signature[name].startswith("*") and name not in parts else []
        for at, name in enumerate(names)
        if signature[name] != "i32"
    }
    source = ASTSource(leaf_items_kernel, signature, constants, attributes)
    assert triton.compile(source, target=GPUTarget("cuda", 80, 32)).hash == ahead.result.hash


@pytest.mark.parametrize("target", sorted(set(TARGETS) - set(SHARED)))
def test_the_other_targets_are_known_to_the_compiler(target):
    with compile_only(target) as (launch, done):
        search(DeviceDecoder("cpu", launch=launch), 16, 4, torch.bfloat16)
    assert len(done) == 4


def test_another_target_or_dtype_is_refused():
    for target in ("sm_70", "90", "sm_x", "sm_95", "sm_090"):
        with pytest.raises(ConfigError, match=f"target must be one of sm_80, .*, got '{target}'"):
            compile_kernels(target, levels=2, level_size=16, candidates=16)
    with pytest.raises(ConfigError, match="no kernels for this: level_size must be 1 to 32768"):
        compile_kernels("sm_90", levels=2, level_size=40_000, candidates=16)
    with pytest.raises(ConfigError, match="dtype must be one of float32, float16, bfloat16, got 'int8'"):
        compile_kernels("sm_90", levels=2, level_size=16, candidates=16, dtype="int8")

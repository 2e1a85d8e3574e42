"""Every kernel compiled for three generations of GPU; test_ahead.py runs this in a process of its own."""

import itertools
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gr2.decoding import CatalogTrie
from gr2.errors import ConfigError
from gr2.kernels import CandidateTables
from gr2.kernels.ahead import compile_kernels, compile_only, compile_searches
from gr2.kernels.device_decoder import DeviceDecoder
from gr2.kernels.leaf_items import leaf_items_kernel

# Bytes of shared memory that a block may have.
SHARED = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def search(decoder, level_size, beams, dtype, **options):
    """A search whose nodes have up to all codes, at last one."""
    codes = [[first, second, 0] for first in range(level_size) for second in range(level_size if first == 0 else 1)]
    catalog = decoder.catalog(CatalogTrie(np.array(codes, np.uint16), level_size))
    retriever = decoder.retriever(beams, **options)
    retriever.start(catalog, 2, filters=decoder.item_filter(catalog, deny=np.arange(2)) if options else None)
    for level in range(3):
        retriever.step(torch.zeros((2, beams if level else 1, level_size), dtype=dtype))
    retriever.finish()


def usage(compiled, folder):
    """Registers and bytes of local memory, and the instructions that read or write it, by cuobjdump."""
    path = folder / "kernel.cubin"
    path.write_bytes(compiled.result.asm["cubin"])
    command = [CUOBJDUMP, "--dump-resource-usage", "--dump-sass", path]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = {name: int(value) for name, value in re.findall(r"\b(REG|LOCAL):(\d+)", text)}
    assert "EXIT" in text
    return numbers["REG"], numbers["LOCAL"], re.findall(r"\b(?:STL|LDL)\b.*", text)


@pytest.mark.parametrize("target", SHARED)
def test_every_kernel_fits_its_target_without_a_spill(target, tmp_path):
    with compile_only(target) as (launch, done):
        decoder = DeviceDecoder("cpu", launch=launch)
        search(decoder, 256, 10, torch.float32)
        search(decoder, 256, 1024, torch.float32)
        search(decoder, 2048, 70, torch.bfloat16, normalization="local")
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
    for each in done:
        registers, local, spills = usage(each, tmp_path)
        assert registers <= 255, each
        assert (local, spills) == (0, []), each
        assert each.result.metadata.shared <= SHARED[target], each
        assert each.result.metadata.target == GPUTarget("cuda", int(target[3:]), 32)


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


@pytest.mark.parametrize("level_size", [10, 16])
def test_batches_of_any_shape_find_their_kernels_compiled_ahead(level_size):
    """Rows of 10 codes begin at 16 bytes or do not, and are strides that are multiples of 16 or are not."""
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


def test_another_target_or_dtype_is_refused():
    for target in ("sm_70", "90", "sm_x"):
        with pytest.raises(ConfigError, match="target must be sm_80 or newer"):
            compile_kernels(target, levels=2, level_size=16, candidates=16)
    with pytest.raises(ConfigError, match="dtype must be one of float32, float16, bfloat16, got 'int8'"):
        compile_kernels("sm_90", levels=2, level_size=16, candidates=16, dtype="int8")

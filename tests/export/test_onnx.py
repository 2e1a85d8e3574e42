"""The graph: equal to the torch student on every shape of request, free of training, the same bytes each time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.decoding import CandidateTrie, CoreStudent
from gr2.decoding import ItemMemory as MappedMemory
from gr2.export.builder import Builder
from gr2.export.gate import Gate
from gr2.export.memory_file import write_memory
from gr2.export.onnx import graph_names, student_graph
from gr2.export.parity import Asked, measure_parity, random_lists
from gr2.export.proof import prove_variants
from gr2.export.served import batch_scorer, core_scorer, pair_scorer, whole_scorer
from gr2.export.variants import export_variant
from gr2.models.memory import MEMORY, ItemMemory
from gr2.models.student import Student, StudentConfig
from gr2.training.student.remember import catalog_memory, item_memory

SIZE, LEVELS, LONGEST = 8, 3, 6


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shop(tiny_run: Path) -> tuple[Dataset, np.ndarray, CandidateLists, ItemMemory]:
    dataset = Dataset.load(tiny_run / "prepare")
    codes = np.load(tiny_run / "tokenize" / "codes.npy")
    assert codes.shape[1] == LEVELS
    assert codes.max() < SIZE
    lists = CandidateLists.load(tiny_run / "prerank" / "test.parquet")
    known = catalog_memory(dataset.catalog, None, neighbours=4, dim=6)
    memory = item_memory(dataset, np.arange(dataset.users), known, neighbours=5, dim=4)
    return dataset, codes, lists, memory


def make_student(items: int, layers: int = 2, encoding: str = "item") -> Student:
    torch.manual_seed(0)
    sizes = {"levels": LEVELS, "level_size": SIZE, "dim": 16, "max_history": LONGEST, "layers": layers}
    student = Student(StudentConfig(items=items, features=3 + len(MEMORY), encoding=encoding, **sizes)).eval()
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    student.weights.copy_(torch.tensor([1.7, 0.6]))
    return student


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("encoding", ["item", "code"])
def test_graphs_score_as_the_student(layers: int, encoding: str, shop: tuple, tmp_path: Path) -> None:
    dataset, codes, lists, memory = shop
    student = make_student(len(codes), layers, encoding)
    paths = export_variant("fp32", student, memory, codes, tmp_path, batched=True)
    write_memory(tmp_path / "memory.bin", memory, codes)
    mapped = MappedMemory(tmp_path / "memory.bin")
    scorers = {
        "whole": whole_scorer(paths["whole"]),
        "split": pair_scorer(paths["encoder"], paths["scorer"], mapped),
        "core": core_scorer(CoreStudent(paths["weights"], "fp32", encoding), mapped),
        "batch": batch_scorer(paths["batch"], longest=LONGEST),
    }
    asked = Asked(student, dataset, codes, memory)
    for part, labelled in ((lists, True), (random_lists(dataset, 40, lists, seed=0), False)):
        for comparison in measure_parity(asked, part, scorers, tolerance=1e-4, labelled=labelled).values():
            figures = comparison.result()
            assert figures.requests == len(part)
            assert 0 < figures.max_abs_difference < 1e-4
            assert figures.identical_order > 0.97
            assert figures.tau > 0.999
            assert figures.broken_order == 0
            assert (figures.labelled > 0) == labelled


def test_without_test_lists_random_ones_are_asked(shop: tuple, tmp_path: Path) -> None:
    dataset, codes, lists, memory = shop
    none = replace(lists.take(np.arange(0)), candidates=lists.candidates[:0, :0], scores=lists.scores[:0, :0])
    asked = Asked(make_student(len(codes), 1), dataset, codes, memory)
    made = {"fp32": export_variant("fp32", asked.student, memory, codes, tmp_path, batched=False)}
    write_memory(tmp_path / "memory.bin", memory, codes)
    graphs = prove_variants(
        asked, made, none, requests=20, tolerance=1e-4, gate=Gate(0.0, 0.0, 1.0), arithmetic="fp32", seed=0
    )
    parity = graphs.variants["fp32"].parity["split"]
    assert parity["real"]["requests"] == 0
    assert parity["random"]["requests"] == 20


@pytest.mark.parametrize(("events", "count"), [(0, 0), (0, 3), (1, 0), (1, 1), (LONGEST, 40)])
@pytest.mark.parametrize("encoding", ["item", "code"])
def test_graph_takes_any_number_of_events_and_candidates(events: int, count: int, encoding: str, shop: tuple) -> None:
    _, codes, _, memory = shop
    graph = student_graph(make_student(len(codes), encoding=encoding), memory, codes).SerializeToString()
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    own = codes[np.arange(count)]
    trie = CandidateTrie(np.ascontiguousarray(own), np.ones(count, dtype=np.bool_), SIZE)
    feed = {"history": codes[len(codes) - events :].astype(np.int64), "mask": trie.mask()}
    feed |= {f"nodes_{depth}": trie.nodes(depth) for depth in range(1, LEVELS)}
    feed |= {"features": np.zeros((count, 3), np.float32), "candidates": own.astype(np.int64)}
    logits, prior = session.run(None, feed)
    assert logits.shape == (trie.node_count, SIZE)
    assert prior.shape == (count,)
    assert np.isfinite(logits).all()
    assert np.isfinite(prior).all()


def test_codes_of_no_item_have_a_finite_prior(shop: tuple) -> None:
    _, codes, _, memory = shop
    held = {tuple(path) for path in codes.tolist()}
    free = next(path for path in np.ndindex(SIZE, SIZE, SIZE) if path not in held)
    session = ort.InferenceSession(
        student_graph(make_student(len(codes)), memory, codes).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    own = np.array([free, codes[3]], dtype=np.uint16)
    trie = CandidateTrie(own, np.ones(2, dtype=np.bool_), SIZE)
    feed = {"history": own[:1].astype(np.int64), "mask": trie.mask(), "features": np.zeros((2, 3), np.float32)}
    feed |= {f"nodes_{depth}": trie.nodes(depth) for depth in range(1, LEVELS)}
    assert np.isfinite(session.run(["prior"], {**feed, "candidates": own.astype(np.int64)})[0]).all()


@pytest.mark.parametrize("batched", [False, True])
def test_graph_is_reproducible_and_holds_no_training(batched: bool, shop: tuple) -> None:
    _, codes, _, memory = shop
    model, again = (
        student_graph(make_student(len(codes)), memory, codes, graph=Builder(batched=batched)) for _ in range(2)
    )
    assert model.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    assert tuple(value.name for value in model.graph.input) == graph_names(LEVELS, batched=batched)[0]
    assert tuple(value.name for value in model.graph.output) == graph_names(LEVELS, batched=batched)[1]
    assert not {node.op_type for node in model.graph.node} & {"Dropout", "Identity", "If", "Loop"}
    read = {name for node in model.graph.node for name in node.input}
    assert {value.name for value in model.graph.initializer} <= read
    onnx.checker.check_model(model, full_check=True)

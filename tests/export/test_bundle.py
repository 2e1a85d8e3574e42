"""The stage `export`: a bundle that loads and ranks, the same bytes twice, and no bundle from a graph that differs."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gr2 import config as configuration
from gr2.artifact import Artifact
from gr2.bundle import Bundle
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.decoding import write_codebook
from gr2.errors import ArtifactError, BundleError
from gr2.export.bundle import INPUTS, ExportConfig, _requests, run
from gr2.export.gate import choose_batch
from gr2.graphs import GraphVariant
from gr2.models.student import Student
from gr2.serving.engine import Engine
from gr2.serving.models.batcher import BatchLimits
from gr2.serving.models.device_model import DeviceModel
from gr2.tokenizer.add import add_items
from gr2.tokenizer.tokenize import TokenizeConfig
from gr2.training import distill


@pytest.fixture(scope="module")
def inputs(tiny_run: Path) -> dict[str, Artifact]:
    torch.set_num_threads(1)
    return {name: Artifact.load(tiny_run / name, name) for name in INPUTS}


def test_bundle_loads_and_ranks_as_the_student(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    artifact = run(ExportConfig(requests=40), inputs, tmp_path / "export", 0)
    bundle = Bundle.load(artifact.path)
    assert bundle.manifest.model.takes_candidates
    parity = bundle.manifest.graphs.variants["fp32"].parity
    assert {way: parts["real"]["requests"] + parts["random"]["requests"] for way, parts in parity.items()} == {
        "whole": 40,
        "split": 40,
        "core": 40,
        "batch": 40,
    }
    assert all(parts["real"]["labelled"] > parts["random"]["labelled"] == 0 for parts in parity.values())
    assert max(part["max_abs_difference"] for parts in parity.values() for part in parts.values()) < 1e-3
    assert bundle.manifest.graphs.default == "fp32"
    assert bundle.manifest.graphs.why == "fp32: int8 is no faster at dim 16, it is from 64 on"
    assert artifact.metrics["version"] == bundle.version

    dataset = Dataset.load(inputs["prepare"].path)
    lists = CandidateLists.load(inputs["prerank"].file("test.parquet")).take(np.arange(5))
    student, memory = distill.load_student(inputs["distill"]), distill.load_memory(inputs["distill"])
    codes = np.load(inputs["tokenize"].file("codes.npy"))
    features = distill.student_features(dataset, codes, lists, memory, longest=student.config.max_history)
    parts = distill.student_parts(student, dataset, codes, lists, features)
    prior, head = student.weights.tolist()
    expected = parts.path + prior * parts.prior + head * parts.head
    engine, ids = Engine(bundle), dataset.catalog.ids
    for row in range(5):
        past = [ids[item] for item in dataset.history(int(lists.user[row]), int(lists.position[row]))]
        ranking = engine.rerank(past, [ids[item] for item in lists.candidates[row]], scores=lists.scores[row])
        scores = {item.index: item.score for item in ranking.items}
        np.testing.assert_allclose([scores[k] for k in range(lists.width)], expected[row], atol=1e-4)


def test_two_exports_are_the_same_bundle(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    config = ExportConfig(requests=10, calibration=5, variants=("int8", "int8-static", "fp16"), min_top1=0, min_tau=0)
    first, second = (run(config, inputs, tmp_path / name, 0) for name in ("a", "b"))
    assert first.digest == second.digest
    assert Bundle.load(first.path).version == Bundle.load(second.path).version
    names = sorted(path.name for path in first.path.iterdir())
    assert {"encoder.int8.onnx", "scorer.int8-static.onnx", "batch.fp16.onnx"} < set(names)
    for name in names:
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes()


def test_a_graph_beyond_the_tolerance_is_refused(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not rank as the student"):
        run(ExportConfig(requests=10, tolerance=1e-12), inputs, tmp_path / "export", 0)
    assert not (tmp_path / "export").exists()


def test_a_kill_at_any_point_leaves_nothing_in_the_way(
    inputs: dict[str, Artifact],
    tmp_path: Path,
    kill_at: Callable[[Callable[[], object], int], bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    config = ExportConfig(requests=1)
    expected = run(config, inputs, tmp_path / "calm", 0).digest
    for number in itertools.count(1):
        out = tmp_path / str(number) / "export"
        killed = kill_at(lambda out=out: run(config, inputs, out, 0), number)  # type: ignore[misc]
        assert run(config, inputs, out, 0).digest == expected
        assert [path.name for path in out.parent.iterdir()] == ["export"]
        Bundle.load(out)
        if not killed:
            break
    assert number > 20


def test_a_codebook_with_other_codes_than_the_student_learned_is_refused(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    folder = tmp_path / "tokenize"
    shutil.copytree(inputs["tokenize"].path, folder)
    catalog, codes = Dataset.load(inputs["prepare"].path).catalog, np.load(folder / "codes.npy")
    write_codebook(folder / "codebook.bin", catalog.keys(), codes[::-1].copy(), 8)
    tampered = {**inputs, "tokenize": replace(inputs["tokenize"], path=folder)}
    with pytest.raises(ArtifactError, match=r"codebook\.bin: \d+ of 60 items have no codes here or others"):
        run(ExportConfig(requests=1), tampered, tmp_path / "export", 0)
    (folder / "codebook.bin").write_bytes(b"not a codebook")
    with pytest.raises(ArtifactError, match=r"codebook\.bin: not the catalogue's codebook: .*run tokenize again"):
        run(ExportConfig(requests=1), tampered, tmp_path / "export", 0)


def test_lists_longer_than_a_request_may_be_are_asked_for_their_first(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    long = CandidateLists(
        *(np.zeros(1, dtype=np.int32) for _ in range(3)),
        np.arange(1100, dtype=np.int32)[None],
        -np.arange(1100, dtype=np.float32)[None],
    )
    long.save(tmp_path / "test.parquet")
    found = _requests(replace(inputs["prerank"], path=tmp_path), "test")
    assert found.candidates.tolist() == [list(range(1024))]


def test_items_that_share_an_id_are_refused(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    folder = tmp_path / "tokenize"
    shutil.copytree(inputs["tokenize"].path, folder)
    catalog, codes = Dataset.load(inputs["prepare"].path).catalog, np.load(folder / "codes.npy")
    codes[7] = codes[3]
    np.save(folder / "codes.npy", codes)
    write_codebook(folder / "codebook.bin", catalog.keys(), codes, 8)
    tampered = {**inputs, "tokenize": replace(inputs["tokenize"], path=folder)}
    with pytest.raises(ArtifactError, match=r"1 of 60 items have the semantic ID of another item.*last_level"):
        run(ExportConfig(requests=1), tampered, tmp_path / "export", 0)


def add(inputs: dict[str, Artifact], folder: Path, ids: list[int | str]) -> Path:
    """Give IDs to new items with random vectors; returns the folder of the artefact."""
    width = inputs["tokenize"].array("standard.npy").shape[1]
    vectors = np.random.default_rng(1).normal(size=(len(ids), width))
    np.savez(folder / "new.npz", item_id=np.array(ids), vector=vectors)
    pq.write_table(pa.table({"item_id": ids}), folder / "new.parquet")
    given = {name: inputs[name] for name in ("prepare", "tokenize")}
    return add_items(given, folder / "new.parquet", folder / "tokenize-add", wanted(inputs, folder / "new.npz")).path


def test_items_added_after_training_are_served(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    catalog = Dataset.load(inputs["prepare"].path).catalog
    new: list[int | str] = ["new 1", "new 2"] if catalog.id_type == "string" else [10**9, 10**9 + 1]
    added = add(inputs, tmp_path, new)
    bundle = Bundle.load(run(ExportConfig(requests=10, added=str(added)), inputs, tmp_path / "export", 0).path)
    ranking = Engine(bundle).rerank([catalog.ids[0], new[1]], [*new, *catalog.ids[1:4]])
    assert [item.status.name for item in ranking.items] == ["SCORED"] * 5
    assert {item.item_id for item in ranking.items} >= set(new)
    before = Bundle.load(run(ExportConfig(requests=10), inputs, tmp_path / "before", 0).path)
    request = ([catalog.ids[0]], catalog.ids[1:9])
    scores = [[item.score for item in Engine(each).rerank(*request).items] for each in (before, bundle)]
    assert scores[0] == scores[1]


def test_items_added_to_other_ids_are_refused(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    first = Dataset.load(inputs["prepare"].path).catalog.ids[0]
    added = add(inputs, tmp_path, ["new" if isinstance(first, str) else 10**9])
    other = {**inputs, "tokenize": replace(inputs["tokenize"], digest="another")}
    with pytest.raises(ArtifactError, match="added to the IDs of another tokenize"):
        run(ExportConfig(added=str(added)), other, tmp_path / "export", 0)


def path_alone(artifact: Artifact) -> Student:
    """The artefact's student without its other parts."""
    student = distill.load_student(artifact)
    student.weights.zero_()
    return student


def test_what_is_asked_for_is_served_if_it_is_within_the_gate(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExportConfig(requests=60, arithmetic="int8", min_top1=0.5, min_tau=0.5, max_lost=0.5, batched=False)
    bundle = Bundle.load(run(config, inputs, tmp_path / "open", 0).path)
    assert bundle.manifest.graphs.default == "int8"
    assert "first candidate is first on" in bundle.manifest.graphs.why
    assert bundle.graph_pair() == (bundle.path / "encoder.int8.onnx", bundle.path / "scorer.int8.onnx")
    ids = Dataset.load(inputs["prepare"].path).catalog.ids
    rounded, exact = Engine(bundle), run(ExportConfig(requests=2, variants=()), inputs, tmp_path / "exact", 0)
    scores = [
        {item.item_id: item.score for item in engine.rerank(ids[:4], ids[4:20]).items}
        for engine in (rounded, Engine(exact.path))
    ]
    differences = [abs(scores[0][item] - scores[1][item]) for item in ids[4:20]]
    assert 0 < max(differences) < 0.5

    # What the memory says outweighs what int8 rounds; the path alone is near enough to ties that rounding tells.
    monkeypatch.setattr("gr2.export.bundle.load_student", path_alone)
    refused = run(replace(config, min_tau=1.0, min_top1=1.0, max_lost=0.0), inputs, tmp_path / "shut", 0)
    graphs = Bundle.load(refused.path).manifest.graphs
    assert graphs.default == "fp32"
    assert graphs.variants["int8"].roles == ()
    assert "refused: split: " in graphs.variants["int8"].verdict
    assert graphs.why.startswith("fp32: int8 was refused")
    assert not list(refused.path.glob("*int8*"))


def test_a_gpu_gets_fp16_where_it_is_wanted_and_within_the_gate(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    config = ExportConfig(requests=40, variants=("fp16",), gpu_arithmetic="fp16", min_top1=0.9, min_tau=0.9)
    bundle = Bundle.load(run(config, inputs, tmp_path / "half", 0).path)
    assert bundle.batch_graph.name == "batch.fp16.onnx"
    assert "On a GPU fp16, as configured: Kendall's tau" in bundle.manifest.graphs.why
    model, engine = DeviceModel(bundle, "cpu", limits=BatchLimits(4, 100.0, 8)), Engine(bundle)
    query = engine._example(3, 8)
    np.testing.assert_allclose(model.score(query).scores, engine._model.score(query).scores, atol=0.05)
    model.close()
    refused = GraphVariant(verdict="refused: batch: Kendall's tau 0.5")
    assert choose_batch("fp16", {"fp16": refused}) == ("fp32", f". On a GPU fp32: fp16 was {refused.verdict}")


@pytest.mark.parametrize(
    "bad",
    [
        {"requests": 0},
        {"tolerance": 0.0},
        {"calibration": 0},
        {"variants": ("int4",)},
        {"arithmetic": "fp16"},
        {"gpu_arithmetic": "int8"},
        {"gpu_arithmetic": "fp16"},
        {"batched": False, "variants": ("fp16",)},
        {"arithmetic": "int8", "variants": ()},
        {"min_tau": 1.5},
    ],
)
def test_impossible_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        ExportConfig(**bad)


def wanted(inputs: dict[str, Artifact], vectors: Path) -> TokenizeConfig:
    return configuration.build(TokenizeConfig, inputs["tokenize"].config | {"vectors": str(vectors)}, "tokenize")

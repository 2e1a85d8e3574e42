"""The model card: in Hugging Face's format, from the run's artefacts alone, and covered by the manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from gr2.artifact import Artifact
from gr2.bundle import Bundle
from gr2.errors import BundleError
from gr2.export.bundle import ExportConfig, run
from gr2.export.card import Card, model_card
from gr2.manifest import CARD

CONFIG = ExportConfig(requests=20, variants=(), batched=False, title="Shop [re-ranker]", license="apache-2.0")


@pytest.fixture(scope="module")
def inputs(tiny_run: Path) -> dict[str, Artifact]:
    return {name: Artifact.load(tiny_run / name, name) for name in ("prepare", "prerank", "tokenize", "distill")}


@pytest.fixture(scope="module")
def bundle(inputs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(run(CONFIG, inputs, tmp_path_factory.mktemp("card") / "export", 0).path)


def test_hugging_face_reads_the_card(bundle: Bundle, inputs: dict[str, Artifact]) -> None:
    card = ModelCard.load(bundle.path / CARD)
    student = inputs["distill"].metrics["student"]
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "gr2"
    assert card.data.model_name == "Shop [re-ranker]"
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results == student
    assert {result.metric_type for result in card.data.eval_results} >= {"ndcg_at_5", "recall_at_1", "mrr"}


def test_figures_are_those_of_the_stages(bundle: Bundle, inputs: dict[str, Artifact]) -> None:
    text = (bundle.path / CARD).read_text()
    prepare, distill = inputs["prepare"].metrics, inputs["distill"].metrics
    change = distill["difference"]["N@5"]
    expected = [
        f"{prepare['users']:,}, {prepare['items']:,}, {prepare['events']:,}",
        f"| N@5 | {distill['incoming']['N@5']:.4f} | {distill['student']['N@5']:.4f} | "
        f"{change['mean']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}] |",
        bundle.manifest.codebook.fingerprint,
        inputs["prepare"].parents["file:interactions"],
        *(stage.digest for stage in inputs.values()),
        f"at most {bundle.manifest.limits.max_candidates:,} candidates",
        "# Shop \\[re-ranker\\]",
    ]
    for line in expected:
        assert line in text


def test_the_reasoner_that_taught_is_among_the_fingerprints(bundle: Bundle, inputs: dict[str, Artifact]) -> None:
    made, told = bundle.manifest, inputs["distill"]
    card = Card("", "", made.model, made.features, made.limits, made.graphs, made.codebook.fingerprint, 0)
    assert "the teacher" not in model_card(card, inputs)
    taught = replace(told, config={**told.config, "teacher": "rl"}, parents={**told.parents, "rl": "f" * 64})
    assert f"| stage `rl`, the teacher | `{'f' * 64}` |" in model_card(card, {**inputs, "distill": taught})


def test_a_second_export_writes_the_same_card(bundle: Bundle, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    again = Bundle.load(run(CONFIG, inputs, tmp_path / "export", 0).path)
    assert (again.path / CARD).read_bytes() == (bundle.path / CARD).read_bytes()
    assert again.version == bundle.version
    text = (bundle.path / CARD).read_text()
    assert str(tmp_path.parent) not in text
    assert "seconds" not in text


def test_without_a_licence_the_card_says_so(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    plain = ExportConfig(requests=20, variants=(), batched=False)
    text = (run(plain, inputs, tmp_path / "export", 0).path / CARD).read_text()
    assert "license:" not in text
    assert "None was given" in text


def test_an_altered_card_is_refused(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    made = run(CONFIG, inputs, tmp_path / "export", 0)
    (made.path / CARD).write_text("another\n")
    with pytest.raises(BundleError, match=r"README\.md"):
        Bundle.load(made.path)

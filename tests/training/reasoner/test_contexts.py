from __future__ import annotations

from pathlib import Path

import pytest

from gr2.artifact import Artifact, open_stage
from gr2.config import deciding
from gr2.errors import ConfigError, DataError
from gr2.prompts.render import ItemView, PromptConfig, Slate
from gr2.training.reasoner.contexts import Context, Contexts, context_sources, context_stages, load_contexts

FOUND = {(0, 3): Context(("a", "b"), 40, 8), (1, 2): Context((), 0, 0), (2, 5): Context(("c",), 60, 12, refused=True)}
SLATE = Slate((), (ItemView((0,), None, ()),))


def test_contexts_are_read_as_they_were_written(tmp_path: Path) -> None:
    Contexts(FOUND).save(tmp_path / "contexts.parquet")
    read = Contexts.load(tmp_path / "contexts.parquet")
    assert read.found == FOUND
    assert read.cost([(0, 3), (2, 5)]) == {"history_tokens": 50.0, "context_tokens": 10.0, "share": 0.2, "refused": 0.5}
    (tmp_path / "contexts.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not contexts written by gr2"):
        Contexts.load(tmp_path / "contexts.parquet")


def test_slates_get_the_contexts_of_their_places() -> None:
    one, two = Contexts(FOUND).slates([SLATE, SLATE], [(2, 5), (0, 3)])
    assert (one.context, two.context) == (("c",), ("a", "b"))
    with pytest.raises(DataError, match=r"of the 4 events of user 0 \(1 are missing\)"):
        Contexts(FOUND).slates([SLATE, SLATE], [(0, 4), (0, 3)])


def test_no_compressor_asks_for_nothing_and_changes_no_fingerprint() -> None:
    assert context_stages(PromptConfig()) == ()
    assert context_sources(PromptConfig()) == {}
    assert load_contexts(PromptConfig(), {}) is None
    assert "compressor" not in deciding(PromptConfig())
    assert deciding(PromptConfig(compressor="compress"))["compressor"] == "compress"


def test_contexts_of_other_histories_are_refused(tiny_parents: dict[str, Artifact], tmp_path: Path) -> None:
    config = PromptConfig(compressor=str(tmp_path / "compress"))
    with pytest.raises(ConfigError, match="holds no artefact of compress"):
        context_sources(config)
    parents = {name: tiny_parents[name].digest for name in ("prepare", "tokenize")}
    for digest in ("other", parents["tokenize"]):
        with open_stage(tmp_path / "compress", "compress", config, parents | {"tokenize": digest}, 0) as work:
            Contexts(FOUND).save(work.path / "contexts.parquet")
        assert set(context_sources(config)) == {"compressor:artifact.json", "compressor:contexts.parquet"}
        if digest == "other":
            with pytest.raises(ConfigError, match="made from another tokenize"):
                load_contexts(config, tiny_parents)
    found = load_contexts(config, tiny_parents)
    assert found is not None
    assert found.found == FOUND

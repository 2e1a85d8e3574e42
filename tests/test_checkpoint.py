"""Checkpoints: what was saved comes back, a broken file is named, and no pickled code is run."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from gr2.checkpoint import load_checkpoint, save_checkpoint
from gr2.errors import ArtifactError


def test_tensors_and_plain_values_come_back(tmp_path: Path) -> None:
    state = {"weights": {"a": torch.arange(3.0)}, "random": torch.get_rng_state(), "place": {"step": 7}, "loss": [0.5]}
    save_checkpoint(tmp_path / "model.pt", state)
    found = load_checkpoint(tmp_path / "model.pt")
    assert found is not None
    assert torch.equal(found["weights"]["a"], state["weights"]["a"])
    assert torch.equal(found["random"], state["random"])
    assert (found["place"], found["loss"]) == ({"step": 7}, [0.5])


def test_no_file_is_no_checkpoint(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "model.pt") is None


def test_saving_again_replaces_the_file_and_leaves_no_other(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path / "model.pt", {"step": step})
    assert load_checkpoint(tmp_path / "model.pt") == {"step": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_cut_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(path, {"weights": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ArtifactError, match=r"model\.pt"):
        load_checkpoint(path)


@pytest.mark.parametrize("data", [b"hello", b"", b"\x80\x02K"])
def test_a_file_of_something_else_is_an_error_that_names_it(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.pt"):
        load_checkpoint(path)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("executed"),)  # type: ignore[return-value]


def test_pickled_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"payload": Payload()}, tmp_path / "model.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload(), protocol=2))
    for name in ("model.pt", "plain.pt"):
        with pytest.raises(ArtifactError, match="not a checkpoint"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "executed").exists()

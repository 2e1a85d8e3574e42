from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from gr2.artifact import Artifact, is_current, open_stage, write_atomic
from gr2.errors import ArtifactError


@dataclass(frozen=True)
class Sample:
    epochs: int = 3


def make(out: Path, text: str = "x", config: Sample | None = None, seed: int = 0) -> Artifact:
    with open_stage(out, "sample", config or Sample(), {"parent": "d"}, seed) as work:
        (work.path / "a.txt").write_text(text)
        (work.path / "sub").mkdir(exist_ok=True)
        (work.path / "sub" / "b.txt").write_text("b")
        work.metrics["value"] = 1.5
    return Artifact.load(out, "sample", verify=True)


def test_commit_moves_the_workspace_and_records_everything(tmp_path: Path) -> None:
    artifact = make(tmp_path / "s")
    assert artifact.metrics == {"value": 1.5}
    assert artifact.config == {"epochs": 3}
    assert artifact.parents == {"parent": "d"}
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["a.txt", "artifact.json", "sub"]
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_digest_follows_the_files_only(tmp_path: Path) -> None:
    first, same, other = make(tmp_path / "1"), make(tmp_path / "2", seed=5), make(tmp_path / "3", "y")
    assert first.digest == same.digest != other.digest
    assert first.fingerprint != same.fingerprint


def test_current_means_same_config_parents_and_seed(tmp_path: Path) -> None:
    out = tmp_path / "s"
    assert not is_current(out, "sample", Sample(), {"parent": "d"}, 0)
    make(out)
    assert is_current(out, "sample", Sample(), {"parent": "d"}, 0)
    assert not is_current(out, "sample", Sample(4), {"parent": "d"}, 0)
    assert not is_current(out, "sample", Sample(), {"parent": "e"}, 0)
    assert not is_current(out, "sample", Sample(), {"parent": "d"}, 1)


def test_failed_stage_keeps_the_old_artefact_and_its_checkpoints(tmp_path: Path) -> None:
    out = tmp_path / "s"
    old = make(out)
    with pytest.raises(RuntimeError), open_stage(out, "sample", Sample(4), {"parent": "d"}, 0) as work:
        (work.checkpoints / "c").write_text("half")
        raise RuntimeError
    assert Artifact.load(out, verify=True).digest == old.digest
    with open_stage(out, "sample", Sample(4), {"parent": "d"}, 0) as work:
        assert (work.checkpoints / "c").read_text() == "half"
    assert Artifact.load(out).config == {"epochs": 4}


def test_checkpoints_of_another_configuration_are_cleared(tmp_path: Path) -> None:
    out = tmp_path / "s"
    with pytest.raises(RuntimeError), open_stage(out, "sample", Sample(), {}, 0) as work:
        (work.checkpoints / "c").write_text("half")
        raise RuntimeError
    with open_stage(out, "sample", Sample(), {}, 1) as work:
        assert not (work.checkpoints / "c").exists()


def test_crash_between_commit_and_move_is_recovered(tmp_path: Path) -> None:
    """The state that a kill leaves after artifact.json was written and before the folder was moved."""
    out = tmp_path / "s"
    make(out)
    partial = tmp_path / "s.partial"
    out.rename(partial)
    (partial / "checkpoints").mkdir()
    (partial / "fingerprint").write_text("f")
    assert is_current(out, "sample", Sample(), {"parent": "d"}, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    Artifact.load(out, verify=True)


def test_altered_or_missing_file_is_found(tmp_path: Path) -> None:
    out = tmp_path / "s"
    make(out)
    (out / "a.txt").write_text("z")
    with pytest.raises(ArtifactError, match=r"a\.txt: missing or altered"):
        Artifact.load(out, verify=True)
    (out / "a.txt").unlink()
    with pytest.raises(ArtifactError, match=r"a\.txt: missing from the sample artefact"):
        Artifact.load(out).file("a.txt")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 99}', "\x00"])
def test_damaged_manifest_is_refused(tmp_path: Path, content: str) -> None:
    out = tmp_path / "s"
    make(out)
    (out / "artifact.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"artifact\.json"):
        Artifact.load(out)
    assert not is_current(out, "sample", Sample(), {"parent": "d"}, 0)


def test_stage_of_another_name_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "s")
    with pytest.raises(ArtifactError, match="expected an artefact of stage 'other', found 'sample'"):
        Artifact.load(tmp_path / "s", "other")


def test_atomic_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "f", b"1")
    write_atomic(tmp_path / "f", b"2")
    assert (tmp_path / "f").read_bytes() == b"2"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]

from __future__ import annotations

import itertools
import json
import os
import resource
from collections.abc import Callable
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
    complaint = r"a\.txt: missing, or altered since it was written; run sample again"
    with pytest.raises(ArtifactError, match=complaint):
        Artifact.load(out, verify=True)
    for damage in ((out / "a.txt").unlink, lambda: (out / "a.txt").write_text("longer")):
        damage()
        with pytest.raises(ArtifactError, match=complaint):
            Artifact.load(out)
        assert not is_current(out, "sample", Sample(), {"parent": "d"}, 0)


def test_an_array_that_is_none_names_the_stage_to_run(tmp_path: Path) -> None:
    artifact = make(tmp_path / "s")
    with pytest.raises(ArtifactError, match=r"a\.txt: not an array: .*; run sample again"):
        artifact.array("a.txt")
    with pytest.raises(ArtifactError, match=r"c\.npy: missing; run sample again"):
        artifact.array("c.npy")


def test_an_artefact_of_a_stage_that_recorded_no_sizes_loads(tmp_path: Path) -> None:
    out = tmp_path / "s"
    make(out)
    record = json.loads((out / "artifact.json").read_text())
    assert record.pop("bytes") == {"a.txt": 1, "sub/b.txt": 1}
    (out / "artifact.json").write_text(json.dumps(record))
    assert Artifact.load(out, verify=True).files == record["files"]


def test_a_kill_at_any_point_and_another_after_it_change_nothing(
    tmp_path: Path, kill_at: Callable[[Callable[[], object], int], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a folder that holds an older artefact, which stands until the new one takes its place."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a kill loses nothing that was written; this saves a minute
    expected = make(tmp_path / "calm", config=Sample(4)).digest

    def attempt() -> None:
        if not is_current(out, "sample", Sample(4), {"parent": "d"}, 0):
            with open_stage(out, "sample", Sample(4), {"parent": "d"}, 0) as work:
                write_atomic(work.checkpoints / "step", b"1")
                write_atomic(work.path / "a.txt", b"x")
                (work.path / "sub").mkdir()
                (work.path / "sub" / "b.txt").write_text("b")

    for first in itertools.count(1):
        for second in range(1, 40, 6):
            out = tmp_path / f"{first}-{second}" / "s"
            out.parent.mkdir()
            make(out, "older")
            killed = kill_at(attempt, first)
            if out.exists():
                Artifact.load(out, verify=True)
            kill_at(attempt, second)
            attempt()
            assert Artifact.load(out, verify=True).digest == expected
            assert [path.name for path in out.parent.iterdir()] == ["s"]
            assert sorted(path.name for path in out.iterdir()) == ["a.txt", "artifact.json", "sub"]
        if not killed:
            break
    assert first > 20


@pytest.mark.parametrize("name", ["s", "s.partial"])
def test_a_file_in_the_way_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ArtifactError, match=f"/{name}: is a file where the stage sample needs a folder"):
        make(tmp_path / "s")
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 99}', '{"schema": 1}', "\x00"])
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


@pytest.mark.parametrize("name", ["out", "out.partial"])
def test_a_folder_with_somebody_elses_files_is_refused_and_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(ArtifactError, match="holds files that no stage of gr2 wrote"),
        open_stage(tmp_path / "out", "prepare", Sample(), {}, 0),
    ):
        pass
    assert (tmp_path / name / "thesis.txt").read_text() == "years of work"


def test_another_stages_folder_is_refused_and_kept(tmp_path: Path) -> None:
    with open_stage(tmp_path / "out", "prepare", Sample(), {}, 0):
        pass
    with (
        pytest.raises(ArtifactError, match="holds the artefact of the stage prepare"),
        open_stage(tmp_path / "out", "encode", Sample(), {}, 0),
    ):
        pass
    assert Artifact.load(tmp_path / "out", "prepare").stage == "prepare"


def test_a_write_that_finds_no_room_names_its_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "kept.bin"
    write_atomic(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"kept\.bin") as caught:
            write_atomic(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]

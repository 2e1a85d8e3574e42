"""Which folder is the wanted version of a name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gr2.errors import BundleError
from gr2.serving.bundles.versions import bundle_folders, is_repository, versions_of


def write(root: Path, *places: str) -> None:
    for place in places:
        (root / place).mkdir(parents=True, exist_ok=True)
        (root / place / "manifest.json").write_text("{}")


def labels(folder: Path) -> list[str]:
    return [version.label for version in versions_of(folder, only=False)]


def test_folder_with_a_manifest_is_one_bundle(tmp_path: Path) -> None:
    write(tmp_path, ".", "old/1")
    assert not is_repository(tmp_path)
    assert [version.path for version in versions_of(tmp_path, only=True)] == [tmp_path]


def test_folder_of_names_and_versions_is_a_repository(tmp_path: Path) -> None:
    write(tmp_path, "shop/1", "games/7")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes.txt").write_text("none of a repository's business")
    assert is_repository(tmp_path)
    assert bundle_folders(tmp_path) == {"games": tmp_path / "games", "shop": tmp_path / "shop"}


def test_numbers_in_version_names_count_as_numbers(tmp_path: Path) -> None:
    write(tmp_path, "9", "10", "2026-11-05", "2026-11-26", "v1.10", "v1.9")
    assert labels(tmp_path) == ["v1.10", "v1.9", "2026-11-26", "2026-11-05", "10", "9"]


def test_version_being_copied_to_a_hidden_name_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "1", ".2.partial")
    assert labels(tmp_path) == ["1"]


def test_pin_names_the_only_version(tmp_path: Path) -> None:
    write(tmp_path, "1", "2")
    (tmp_path / "current").write_text("1\n")
    assert labels(tmp_path) == ["1"]


@pytest.mark.parametrize("pin", ["3", "", "../other", ".", "..", "/etc"])
def test_pin_that_names_no_version_is_refused(tmp_path: Path, pin: str) -> None:
    write(tmp_path, "shop/1", "other")
    (tmp_path / "shop" / "current").write_text(pin)
    with pytest.raises(BundleError, match="which is not there"):
        versions_of(tmp_path / "shop", only=False)


def test_stamp_changes_with_any_file_and_with_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, "1")
    before = versions_of(tmp_path, only=False)
    assert versions_of(tmp_path, only=False) == before
    manifest = tmp_path / "1" / "manifest.json"
    replaced = tmp_path / "1" / "other"
    replaced.write_text("[]")
    os.utime(replaced, ns=(manifest.stat().st_atime_ns, manifest.stat().st_mtime_ns))
    replaced.replace(manifest)
    assert versions_of(tmp_path, only=False) != before


def test_repository_of_too_many_names_is_refused(tmp_path: Path) -> None:
    for number in range(65):
        (tmp_path / str(number)).mkdir()
    with pytest.raises(BundleError, match="65 names, and a server takes at most 64"):
        bundle_folders(tmp_path)

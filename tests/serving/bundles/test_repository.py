"""Bundles replaced while they serve: the new one, or the old one, and never anything else."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gr2.bundle import Bundle
from gr2.errors import BundleError, ConfigError, RequestError, UnservedError
from gr2.serving.bundles import repository as repository_module
from gr2.serving.bundles.repository import Repository
from gr2.serving.engine import Engine

MakeBundle = Callable[..., Path]
KNOWN = [1000 + 7 * item for item in range(300)]


def put(bundle: Path, place: Path) -> None:
    """Copy a bundle aside and rename it to `place`."""
    aside = place.with_name(f".{place.name}.partial")
    shutil.copytree(bundle, aside)
    aside.rename(place)


@pytest.fixture
def bundles(make_bundle: MakeBundle) -> list[Path]:
    return [make_bundle(), make_bundle(scale=2.0), make_bundle(scale=3.0)]


@pytest.fixture
def root(tmp_path: Path, bundles: list[Path]) -> Path:
    (tmp_path / "shop").mkdir()
    put(bundles[0], tmp_path / "shop" / "1")
    return tmp_path


def served(repository: Repository, name: str = "") -> str:
    with repository.lease(name) as engine:
        return engine.rerank(KNOWN[:3], KNOWN[3:9]).bundle_version


def version(bundle: Path) -> str:
    return Bundle.load(bundle).version


def test_new_version_takes_as_long_as_the_old_one_until_it_is_known(root: Path, bundles: list[Path]) -> None:
    put(bundles[1], root / "games" / "1")
    repository = Repository(root, default="shop")
    with repository.lease("shop") as old, repository.lease("games") as other:
        times = old.times
        assert other.times is not times
    put(bundles[2], root / "shop" / "2")
    repository.refresh()
    with repository.lease("shop") as new:
        assert (new.version, new.times) == (version(bundles[2]), times)


def test_newest_version_serves_at_the_start(root: Path, bundles: list[Path]) -> None:
    put(bundles[1], root / "shop" / "2")
    repository = Repository(root)
    assert repository.default == "shop"
    assert served(repository) == served(repository, "shop") == version(bundles[1])


def test_new_version_takes_over_and_its_removal_brings_the_old_one_back(root: Path, bundles: list[Path]) -> None:
    repository = Repository(root)
    put(bundles[1], root / "shop" / "2")
    repository.refresh()
    assert served(repository) == version(bundles[1])
    shutil.rmtree(root / "shop" / "2")
    repository.refresh()
    assert served(repository) == version(bundles[0])
    status = repository.status()[0]
    assert (status.name, status.label, status.swaps, status.refusals, status.reason) == ("shop", "1", 2, 0, "")


def test_pin_holds_a_version_and_its_change_is_followed(root: Path, bundles: list[Path]) -> None:
    repository = Repository(root)
    (root / "shop" / "current").write_text("1")
    put(bundles[1], root / "shop" / "2")
    repository.refresh()
    assert served(repository) == version(bundles[0])
    (root / "shop" / "current").write_text("2")
    repository.refresh()
    assert served(repository) == version(bundles[1])
    (root / "shop" / "current").write_text("nowhere")
    repository.refresh()
    assert served(repository) == version(bundles[1])
    assert "'nowhere', which is not there" in repository.status()[0].reason


def test_unchanged_folder_is_not_loaded_again(root: Path) -> None:
    loads: list[str] = []

    def load(bundle: Bundle) -> Engine:
        loads.append(bundle.version)
        return Engine(bundle)

    repository = Repository(root, load)
    repository.refresh()
    repository.refresh()
    assert len(loads) == 1


def test_bundle_replaced_by_rename_is_served_from_the_same_folder(tmp_path: Path, bundles: list[Path]) -> None:
    shutil.copytree(bundles[0], tmp_path / "export")
    repository = Repository(tmp_path / "export")
    (tmp_path / "export").rename(tmp_path / "old")
    repository.refresh()
    assert served(repository) == version(bundles[0])
    shutil.copytree(bundles[1], tmp_path / "export")
    repository.refresh()
    assert repository.default == "default"
    assert served(repository) == version(bundles[1])


@pytest.mark.parametrize("name", ["model.onnx", "codebook.bin", "manifest.json"])
def test_broken_version_is_refused_once_and_served_when_mended(
    root: Path, bundles: list[Path], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    repository = Repository(root)
    changes: list[str] = []
    repository.on_change = lambda: changes.append(repository.status()[0].reason)
    put(bundles[1], root / "shop" / "2")
    whole = (root / "shop" / "2" / name).read_bytes()
    (root / "shop" / "2" / name).write_bytes(whole[:-7] + b"corrupt")
    for _ in range(3):
        repository.refresh()
    assert served(repository) == version(bundles[0])
    status = repository.status()[0]
    assert (status.label, status.swaps, status.refusals) == ("1", 0, 1)
    assert name in status.reason
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    (root / "shop" / "2" / name).write_bytes(whole)
    repository.refresh()
    assert served(repository) == version(bundles[1])
    assert [bool(reason) for reason in changes] == [True, False]


def test_refused_version_is_tried_again_after_a_while(
    root: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True

    def load(bundle: Bundle) -> Engine:
        if full and bundle.path.name == "2":
            raise MemoryError("no memory for now")
        return Engine(bundle)

    repository = Repository(root, load)
    put(bundles[1], root / "shop" / "2")
    repository.refresh()
    full = False
    repository.refresh()
    assert served(repository) == version(bundles[0])
    monkeypatch.setattr(repository_module, "RETRY", 0.0)
    repository.refresh()
    assert served(repository) == version(bundles[1])


def test_older_version_serves_at_the_start_if_the_newest_is_broken(root: Path, bundles: list[Path]) -> None:
    put(bundles[1], root / "shop" / "2")
    (root / "shop" / "2" / "model.onnx").write_bytes(b"")
    repository = Repository(root)
    assert served(repository) == version(bundles[0])
    assert "model.onnx" in repository.status()[0].reason


def test_vanished_repository_changes_nothing(root: Path, bundles: list[Path], tmp_path: Path) -> None:
    repository = Repository(root)
    root.joinpath("shop").rename(tmp_path / ".gone")
    repository.refresh()
    assert served(repository) == version(bundles[0])
    assert [status.name for status in repository.status()] == ["shop"]


def test_folder_that_vanishes_for_a_moment_is_no_refusal(tmp_path: Path, bundles: list[Path]) -> None:
    shutil.copytree(bundles[0], tmp_path / "export")
    repository = Repository(tmp_path / "export")
    (tmp_path / "export").rename(tmp_path / "old")
    for _ in range(3):
        repository.refresh()
    assert repository.status()[0].refusals == 0
    assert "No such file" in repository.status()[0].reason
    (tmp_path / "old").rename(tmp_path / "export")
    repository.refresh()
    assert (repository.status()[0].swaps, repository.status()[0].reason) == (0, "")


def test_folder_that_is_not_there_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"not a bundle: no manifest\.json"):
        Repository(tmp_path / "nowhere")


def test_several_bundles_by_name(root: Path, bundles: list[Path]) -> None:
    (root / "games").mkdir()
    put(bundles[1], root / "games" / "1")
    with pytest.raises(ConfigError, match="which bundle is the default one"):
        Repository(root)
    repository = Repository(root, default="shop")
    assert served(repository) == version(bundles[0])
    assert served(repository, "games") == version(bundles[1])
    with pytest.raises(RequestError, match="bundle: no bundle 'toys' here; there are games, shop"):
        repository.lease("toys")
    (root / "toys").mkdir()
    put(bundles[2], root / "toys" / "1")
    (root / "toys" / "1" / "codebook.bin").unlink()
    repository.refresh()
    with pytest.raises(UnservedError, match="bundle 'toys': no version of it"):
        repository.lease("toys")
    assert [status.label for status in repository.status()] == ["1", "1", ""]


def test_default_bundle_that_cannot_be_served_is_an_error_at_the_start(root: Path) -> None:
    (root / "shop" / "1" / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        Repository(root)


def test_request_in_flight_finishes_on_the_bundle_it_began_with(root: Path, bundles: list[Path]) -> None:
    closed: list[str] = []

    class Closing(Engine):
        def close(self) -> None:
            super().close()
            closed.append(self.version)

    repository = Repository(root, Closing)
    put(bundles[1], root / "shop" / "2")
    with ThreadPoolExecutor(1) as pool:
        with repository.lease() as engine:
            swap = pool.submit(repository.refresh)
            while served(repository) != version(bundles[1]):
                time.sleep(0.01)
            assert engine.rerank([], KNOWN[:5]).bundle_version == version(bundles[0])
            assert not closed
        swap.result(10)
    assert closed == [version(bundles[0])]


def test_bundle_whose_users_stay_is_closed_when_they_leave(
    root: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository_module, "PATIENCE", 0.01)
    repository = Repository(root)
    with repository.lease():
        put(bundles[1], root / "shop" / "2")
        repository.refresh()
        assert repository.status()[0].draining == 1
    repository.refresh()
    assert repository.status()[0].draining == 0


def test_polling_finds_a_new_version_under_load(root: Path, bundles: list[Path]) -> None:
    versions = [version(bundle) for bundle in bundles]
    repository = Repository(root, poll=0.02)
    repository.start()
    expected = {version(bundle): Engine(bundle).rerank(KNOWN[:5], KNOWN[5:25]).items for bundle in bundles}
    over, seen = threading.Event(), set[str]()

    def ask() -> None:
        while not over.is_set():
            with repository.lease() as engine:
                ranking = engine.rerank(KNOWN[:5], KNOWN[5:25])
            assert ranking.items == expected[ranking.bundle_version]
            seen.add(ranking.bundle_version)

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        for number in range(3):
            if number:
                put(bundles[number], root / "shop" / str(number + 1))
            deadline = time.monotonic() + 20
            while versions[number] not in seen:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        over.set()
        for each in asking:
            each.result()
    repository.close()
    with pytest.raises(UnservedError):
        repository.lease()


def resident() -> int:
    """Bytes of memory that this process holds."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])


def test_memory_returns_to_where_it_was_over_50_swaps(tmp_path: Path, make_bundle: MakeBundle) -> None:
    pair = [make_bundle(items=3000, level_size=4096, scale=scale) for scale in (1.0, 2.0)]
    (tmp_path / "shop").mkdir()
    for number, bundle in enumerate(pair):
        (tmp_path / "shop" / str(number)).symlink_to(bundle)
    pin = tmp_path / "shop" / "current"
    pin.write_text("0")
    repository = Repository(tmp_path)
    sizes = []
    for swap in range(1, 61):
        pin.write_text(str(swap % 2))
        repository.refresh()
        served(repository)
        sizes.append(resident())
    assert repository.status()[0].swaps == 60
    model = pair[0].joinpath("model.onnx").stat().st_size
    assert model > 500_000
    # Fifty models would be 25 MB and more.
    assert sizes[-1] - sizes[9] < 5 * model

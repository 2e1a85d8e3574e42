"""The bundle: what `write_bundle` writes, `Bundle.load` reads, and nothing else passes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gr2.bundle import Bundle, FeatureSpec, Limits, ModelSpec, default_limits, graph_inputs, write_bundle
from gr2.catalog import Catalog
from gr2.decoding import write_codebook
from gr2.errors import BundleError

MakeBundle = Callable[..., Path]
FILES = ("model.onnx", "codebook.bin", "items.parquet")


@pytest.fixture
def bundle(make_bundle: MakeBundle, tmp_path: Path) -> Path:
    """A bundle that the test may damage."""
    return Path(shutil.copytree(make_bundle(), tmp_path / "bundle"))


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((bundle / "manifest.json").read_text())
    change(record)
    (bundle / "manifest.json").write_text(json.dumps(record))


def rewrite(source: Path, out: Path, **changed: Any) -> Bundle:
    old = Bundle.load(source)
    parts: dict[str, Any] = {
        "graph": old.graph,
        "codebook": source / "codebook.bin",
        "catalog": old.catalog(),
        "model": old.manifest.model,
        "features": old.manifest.features,
        "limits": old.manifest.limits,
    }
    return write_bundle(out, **{**parts, **changed})


def test_load_reads_what_write_bundle_wrote(make_bundle: MakeBundle) -> None:
    bundle = Bundle.load(make_bundle(width=2))
    assert len(bundle.version) == 12
    assert bundle.manifest.model == ModelSpec(4, 16, 20, 16, 1, 18)
    assert bundle.manifest.model.inputs == ("history", "nodes_1", "nodes_2", "nodes_3", "mask", "features")
    assert bundle.manifest.features == FeatureSpec(2, ("feature_0", "feature_1"))
    assert bundle.manifest.features.columns == 5
    assert (bundle.manifest.codebook.items, bundle.manifest.codebook.id_type) == (300, "int64")
    assert bundle.codebook().fingerprint == bundle.manifest.codebook.fingerprint
    assert bundle.catalog().title[2] == "Title 1014"


def test_the_same_parts_give_the_same_bytes(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for name in ("a", "b"):
        rewrite(make_bundle(), tmp_path / name)
    for name in (*FILES, "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_version_depends_on_everything_in_the_manifest(make_bundle: MakeBundle, tmp_path: Path) -> None:
    first = rewrite(make_bundle(), tmp_path / "a")
    second = rewrite(make_bundle(), tmp_path / "b", quality={"ndcg": 0.5})
    assert first.version != second.version


def test_a_manifest_names_the_encoding_where_it_is_not_the_items(make_bundle: MakeBundle, tmp_path: Path) -> None:
    model = Bundle.load(make_bundle()).manifest.model
    codes = rewrite(make_bundle(), tmp_path / "codes", model=replace(model, encoding="code"))
    assert "encoding" not in json.loads((make_bundle() / "manifest.json").read_text())["model"]
    assert json.loads((codes.path / "manifest.json").read_text())["model"]["encoding"] == "code"
    assert codes.manifest.model.tokens == 4
    assert Bundle.load(codes.path).manifest.model == codes.manifest.model
    with pytest.raises(ValueError, match=r"max_history must be in 1\.\.1024 with one token a code, got 1025"):
        replace(model, encoding="code", max_history=1025)


def test_files_that_the_manifest_does_not_name_are_ignored(bundle: Path) -> None:
    (bundle / "artifact.json").write_text("{}")
    assert Bundle.load(bundle).path == bundle


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: cannot be read"):
        Bundle.load(bundle)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_pipe_or_device_in_place_of_a_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    with pytest.raises(BundleError, match=f"{name}: cannot be read: .*not a regular file"):
        Bundle.load(bundle)
    (bundle / name).unlink()
    (bundle / name).symlink_to("/dev/zero")
    with pytest.raises(BundleError, match=f"{name}: cannot be read: .*not a regular file"):
        Bundle.load(bundle)


@pytest.mark.parametrize("name", FILES)
def test_symbolic_link_to_a_file_is_followed(bundle: Path, name: str) -> None:
    (bundle / name).rename(bundle / "elsewhere")
    (bundle / name).symlink_to("elsewhere")
    Bundle.load(bundle)


@pytest.mark.parametrize("name", FILES)
def test_truncated_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes((bundle / name).read_bytes()[:-1])
    with pytest.raises(BundleError, match=rf"{name}: \d+ bytes, expected \d+"):
        Bundle.load(bundle)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_one_flipped_bit_is_refused(bundle: Path, name: str, place: float) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[int(place * len(data))] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name}: altered"):
        Bundle.load(bundle)


def test_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"not a bundle: no manifest\.json"):
        Bundle.load(tmp_path)
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.load(tmp_path / "absent")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"schema"', "\x00", "[" * 10**6])
def test_manifest_that_is_no_object_is_refused(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        Bundle.load(bundle)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 1, "schema 2 expected, found 1"),
        (("graphs",), [], "graphs must be an object"),
        (("graphs", "default"), "int8", "default is int8, of which there is no graph"),
        (("graphs", "batch"), "fp16", "batch is fp16, of which there is no graph"),
        (("graphs", "variants"), {}, "the whole graph in fp32 is missing"),
        (("graphs", "variants"), {"fp32": {"roles": ["whole"]}, "int4": {}}, "variants must be some of .*got int4"),
        (("graphs", "variants", "fp32", "roles"), ["whole", "encoder"], "an encoder and a scorer go together"),
        (("graphs", "variants", "fp32", "roles"), ["whole", "tail"], "roles must be some of"),
        (("graphs", "variants", "fp32", "roles"), ["whole", "weights"], "weights go together with an encoder"),
        (("graphs", "variants", "fp32", "roles"), ["whole", "batch"], "files must be batch.onnx, codebook.bin"),
        (("surprise",), 1, "unknown: surprise"),
        (("quality",), [], "quality must be an object"),
        (("files", "../../etc/passwd"), {}, "files must be"),
        (("files", "model.onnx"), "abc", "model.onnx needs sha256 and bytes"),
        (("model",), 3, r"\[model\] must be a table"),
        (("model", "levels"), 0, r"levels must be in 1\.\.8, got 0"),
        (("model", "levels"), 10**9, r"levels must be in 1\.\.8"),
        (("model", "level_size"), 2**16 + 1, r"level_size must be in 1\.\.65536"),
        (("model", "max_history"), 10**12, r"max_history must be in 1\.\.4096"),
        (("limits", "max_history"), 10**12, r"max_history must be in 1\.\.65536"),
        (("limits", "max_request_bytes"), 2**31, r"max_request_bytes must be in 1\.\.1073741824"),
        (("quality",), {"ndcg": float("nan")}, "NaN is no JSON number"),
        (("parity",), {"difference": float("-inf")}, "-Infinity is no JSON number"),
        (("model", "levels"), "4", r"\[model\] levels must be int"),
        (("model", "levels"), 5, "inputs must be history, nodes_1"),
        (("model", "level_sise"), 5, "did you mean 'level_size'"),
        (("model", "normalization"), "softmax", "must be one of"),
        (("codebook", "id_type"), "int32", "must be one of"),
        (("features", "width"), 3, "width 3 and 0 names"),
        (("limits", "max_candidates"), 4096, r"max_candidates must be in 1\.\.1024"),
        (("limits", "max_candidates"), "many", "max_candidates must be int"),
        (("limits", "max_history"), 0, r"in 1\.\.65536, got 0"),
        (("limits", "max_history"), 99, "edited after the export"),
        (("model", "max_history"), 21, "edited after the export"),
        (("created_by",), {"gr2": "9"}, "edited after the export"),
        (("version",), "0" * 12, "edited after the export"),
    ],
)
def test_wrong_manifest_value_is_named(bundle: Path, path: tuple[str, ...], value: Any, message: str) -> None:
    def change(record: dict[str, Any]) -> None:
        for key in path[:-1]:
            record = record[key]
        record[path[-1]] = value

    edit(bundle, change)
    with pytest.raises(BundleError, match=message):
        Bundle.load(bundle)


@pytest.mark.parametrize("key", ["files", "model", "codebook", "features", "limits", "parity", "version"])
def test_missing_manifest_key_is_named(bundle: Path, key: str) -> None:
    edit(bundle, lambda record: record.pop(key))
    with pytest.raises(BundleError, match=f"missing or unknown: {key}"):
        Bundle.load(bundle)


def test_codebook_of_other_levels_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not the model's codebook"):
        rewrite(make_bundle(), tmp_path / "out", model=ModelSpec(3, 16, 20, 16, 1, 18))
    assert list(tmp_path.iterdir()) == []


def test_codebook_of_another_catalogue_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    source = make_bundle()
    ids = np.arange(5, dtype=np.int64)
    write_codebook(str(tmp_path / "other.bin"), ids, np.zeros((5, 4), dtype=np.uint16), 16)
    with pytest.raises(BundleError, match="the codebook has 5 items of type int64, the catalogue 300 of type int64"):
        rewrite(source, tmp_path / "out", codebook=tmp_path / "other.bin")


def test_damaged_codebook_is_a_bundle_error(make_bundle: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "bad.bin").write_bytes(b"not a codebook" * 100)
    with pytest.raises(BundleError, match="codebook"):
        rewrite(make_bundle(), tmp_path / "out", codebook=tmp_path / "bad.bin")


def test_write_bundle_replaces_an_older_bundle(bundle: Path, make_bundle: MakeBundle) -> None:
    new = rewrite(make_bundle(), bundle, quality={"ndcg": 1.0})
    assert Bundle.load(bundle) == new
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_failed_write_leaves_the_older_bundle(bundle: Path, make_bundle: MakeBundle) -> None:
    before = Bundle.load(bundle)
    with pytest.raises(ValueError, match="JSON"):
        rewrite(make_bundle(), bundle, quality={"ndcg": float("nan")})
    assert Bundle.load(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture
def killed_between_the_renames(bundle: Path, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose bundle was moved aside when the process that replaced it was killed."""
    rename = Path.rename

    def once(path: Path, target: Path) -> Path:
        if target == bundle:
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "rename", once)
        rewrite(make_bundle(), bundle, quality={"ndcg": 1.0})
    assert not bundle.exists()
    return bundle


def test_interrupted_write_is_named(killed_between_the_renames: Path) -> None:
    with pytest.raises(BundleError, match=r"a write was interrupted, .*\.bundle\.old is the older one"):
        Bundle.load(killed_between_the_renames)


def test_write_after_an_interrupted_one(killed_between_the_renames: Path, make_bundle: MakeBundle) -> None:
    bundle = killed_between_the_renames
    with pytest.raises(ValueError, match="JSON"):
        rewrite(make_bundle(), bundle, quality={"ndcg": float("nan")})
    assert Bundle.load(bundle).manifest.quality == {}
    new = rewrite(make_bundle(), bundle, quality={"ndcg": 1.0})
    assert Bundle.load(bundle) == new
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_write_bundle_never_replaces_another_folder(make_bundle: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("dear")
    with pytest.raises(BundleError, match="is not a bundle"):
        rewrite(make_bundle(), tmp_path / "home")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "dear"


def test_message_limit_leaves_room_for_the_largest_request() -> None:
    blank: list[Any] = [None]
    catalog = Catalog(["x" * 500], blank, blank, [[]], blank, blank)
    features = FeatureSpec(64, tuple(map(str, range(64))))
    limits = default_limits(catalog, features)
    assert limits.max_request_bytes >= 2048 * 500 + 1024 * 64 * 4
    assert default_limits(Catalog([1], blank, blank, [[]], blank, blank), FeatureSpec()) == Limits()


def test_message_limit_stays_below_what_grpc_can_take() -> None:
    blank: list[Any] = [None]
    limits = default_limits(Catalog(["x" * 10**6], blank, blank, [[]], blank, blank), FeatureSpec())
    assert limits.max_request_bytes == 2**30


def test_graph_without_inner_levels_has_no_node_inputs() -> None:
    assert list(graph_inputs(1)) == ["history", "mask", "features"]
    assert list(graph_inputs(1, candidates=True)) == ["history", "mask", "features", "candidates"]

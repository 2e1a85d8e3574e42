"""The job that encodes a whole catalogue, on this process alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from gr2 import config as configuration
from gr2.artifact import Artifact, open_stage
from gr2.catalog import Catalog
from gr2.decoding import Codebook as CodebookFile
from gr2.errors import ArtifactError, ConfigError, DataError, Gr2Error
from gr2.tokenizer.add import add_items
from gr2.tokenizer.assign import extend_codes
from gr2.tokenizer.bulk import buckets, source
from gr2.tokenizer.bulk.encode import Work, encode_items
from gr2.tokenizer.order import content_order
from gr2.tokenizer.residual_kmeans import Codebook
from gr2.tokenizer.rqvae import Rqvae
from gr2.tokenizer.tokenize import TokenizeConfig, run

KNOWN, NEW, WIDTH = 600, 3000, 8


class Here:
    """The tasks one by one in this process, by way of JSON; `broken` is called before each."""

    def __init__(self, broken: Callable[[], None] = lambda: None) -> None:
        self.broken = broken

    def run(self, work: Work, tasks: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        for task in tasks:
            self.broken()
            yield json.loads(json.dumps(work(json.loads(json.dumps(task)))))


def vectors(seed: int, rows: int = NEW) -> NDArray[np.float32]:
    """Around 60 centres, some of which have many more."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(60, WIDTH)) * 2.0
    chosen = np.minimum(rng.geometric(0.05, size=rows), 60) - 1
    return (centres[chosen] + 0.5 * rng.normal(size=(rows, WIDTH))).astype(np.float32)


def table(ids: Any, rows: NDArray[np.float32]) -> pa.Table:
    return pa.table({"item_id": ids, "vector": pa.array(list(rows), pa.list_(pa.float32()))})


def write(folder: Path, ids: NDArray[Any], rows: NDArray[np.float32], files: int = 1, group: int = 700) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(np.array_split(np.arange(len(ids)), files)):
        pq.write_table(table(ids[part], rows[part]), folder / f"{number}.parquet", row_group_size=group)
    return folder


def tokenizer(folder: Path, ids: Any = range(KNOWN), **options: Any) -> dict[str, Artifact]:
    """Codes learnt from the vectors of items 0 to 599."""
    pq.write_table(table(list(ids), vectors(1, KNOWN)), folder / "own.parquet")
    blank: list[Any] = [None] * KNOWN
    with open_stage(folder / "prepare", "prepare", TokenizeConfig(), {}, 0) as work:
        Catalog(list(ids), blank, blank, [[]] * KNOWN, blank, blank).save(work.path / "items.parquet")
    inputs = {"prepare": Artifact.load(folder / "prepare")}
    settings = {"levels": 3, "level_size": 64, "iterations": 5, **options}
    config = TokenizeConfig(vectors=str(folder / "own.parquet"), **settings)
    return inputs | {"tokenize": run(config, inputs, folder / "tokenize", seed=0)}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return tokenizer(tmp_path_factory.mktemp("run"))


def encode(inputs: Mapping[str, Artifact], items: Path, out: Path, pool: Here | None = None) -> Artifact:
    return encode_items(inputs, [items], out, workers=nullcontext(pool or Here()))


def codes_of(made: Artifact) -> dict[Any, tuple[int, ...]]:
    tables = [pq.read_table(path) for path in sorted((made.path / "codes").iterdir())]
    return {item: tuple(row) for each in tables for item, row in zip(*map(list_of, each.columns[:2]), strict=True)}


def list_of(column: Any) -> list[Any]:
    values: list[Any] = column.to_pylist()
    return values


def reference(inputs: Mapping[str, Artifact], ids: NDArray[Any], rows: NDArray[np.float32]) -> dict[Any, Any]:
    """The codes of `extend_codes` over items in content order."""
    base = inputs["tokenize"]
    order = content_order([row.tobytes() for row in rows], ids.tolist(), base.seed)
    mean, scale = base.array("standard.npy")
    centroids = base.array("centroids.npy")
    points = ((rows[order] - mean) / scale).astype(np.float32)
    if base.config["method"] == "rqvae":
        points = Rqvae.load(base.file("rqvae.safetensors"), TokenizeConfig(hidden=(16,), latent_dim=8)).encode(points)
    book = Codebook(centroids, (centroids.shape[1],) * len(centroids))
    assignment = extend_codes(points, base.array("codes.npy"), book)
    assert assignment.overflow == 0
    return dict(zip(ids[order].tolist(), map(tuple, assignment.codes.tolist()), strict=True))


@pytest.mark.parametrize(
    ("new", "options"),
    [
        (NEW, {}),
        (900, {"levels": 2, "level_size": 75}),
        (NEW, {"levels": 4, "level_size": 40, "last_level": "random", "random_levels": 2}),
        (NEW, {"method": "rqvae", "hidden": (16,), "latent_dim": 8, "epochs": 2}),
    ],
)
def test_codes_are_those_of_extend_codes(tmp_path: Path, new: int, options: dict[str, Any]) -> None:
    inputs = tokenizer(tmp_path, **options)
    ids, rows = np.arange(1000, 1000 + new), vectors(2, new)
    made = encode(inputs, write(tmp_path / "items", ids, rows, files=3), tmp_path / "encode")
    codes = codes_of(made)
    old = inputs["tokenize"].array("codes.npy").tolist()
    assert {item: codes.pop(item) for item in range(KNOWN)} == dict(enumerate(map(tuple, old)))
    assert codes == reference(inputs, ids, rows)
    assert made.metrics["crowded_prefixes"] > 0
    assert made.metrics["overflow"] == 0
    assert made.metrics["overflow_prefixes"] == []


def test_codebook_and_metrics_are_those_of_add_items(tmp_path: Path) -> None:
    ids, rows = np.arange(1000, 1000 + NEW), vectors(2)
    inputs = tokenizer(tmp_path)
    pq.write_table(table(ids, rows), tmp_path / "new.parquet")
    added = add_items(inputs, tmp_path / "new.parquet", tmp_path / "added", wanted(inputs, tmp_path / "new.parquet"))
    made = encode(inputs, tmp_path / "new.parquet", tmp_path / "encode")
    assert made.file("codebook.bin").read_bytes() == added.file("codebook.bin").read_bytes()
    for name in ("items", "added", "overflow"):
        assert made.metrics[name] == added.metrics[name]
    for name in ("reconstruction_error", "drift"):
        assert made.metrics[name] == pytest.approx(added.metrics[name], rel=1e-5)
    assert made.metrics["unique"] == 1.0
    assert made.metrics["prefixes"] == len({codes[:-1] for codes in codes_of(made).values()})
    assert made.metrics["codebook_bytes"] == made.file("codebook.bin").stat().st_size
    assert made.metrics["worker_peak_bytes"] > 0
    errors = pq.read_table(made.file("codes/0000.parquet")).to_pydict()
    assert [row["error"] for row in pq.read_table(made.file("codes/0000.parquet")).to_pylist()].count(None) == KNOWN
    assert np.nanmean(np.array(errors["error"], dtype=float)) / WIDTH == pytest.approx(
        made.metrics["reconstruction_error"], rel=1e-5
    )


def test_rows_in_another_order_and_other_files_give_the_same_bytes(
    tmp_path: Path, inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "BUCKET_ROWS", 500)
    ids, rows = np.arange(1000, 1000 + NEW), vectors(2)
    rows[::5] = rows[0]
    order = np.random.default_rng(0).permutation(NEW)
    made = []
    for name, taken, files, unit in (("a", np.arange(NEW), 1, 1 << 17), ("b", order, 7, 100)):
        monkeypatch.setattr(source, "UNIT_ROWS", unit)
        items = write(tmp_path / name, ids[taken], rows[taken], files=files, group=200)
        made.append(encode(inputs, items, tmp_path / f"encode-{name}"))
    assert len(made[0].files) == 7
    assert made[0].digest == made[1].digest


def test_items_that_have_an_id_keep_it_and_are_passed_over(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    ids, rows = np.arange(KNOWN - 100, KNOWN + 100), vectors(3, 200)
    made = encode(inputs, write(tmp_path / "items", ids, rows), tmp_path / "encode")
    codes, old = codes_of(made), inputs["tokenize"].array("codes.npy").tolist()
    assert made.metrics["added"] == 100
    assert made.metrics["items"] == len(codes) == KNOWN + 100
    assert [codes[item] for item in range(KNOWN)] == list(map(tuple, old))
    again = encode(inputs, write(tmp_path / "known", ids[:100], rows[:100]), tmp_path / "nothing")
    assert again.metrics["added"] == 0
    assert again.metrics["drift"] is None


def test_ids_may_be_strings(tmp_path: Path) -> None:
    inputs = tokenizer(tmp_path, [f"artículo {number}" for number in range(KNOWN)])
    ids = np.array([f"nuevo {number}" for number in range(NEW)])
    made = encode(inputs, write(tmp_path / "items", ids, vectors(2), files=2), tmp_path / "encode")
    book = CodebookFile(made.file("codebook.bin"))
    found, known = book.lookup(["artículo 3", "nuevo 7", "nuevo 3000"])
    codes = codes_of(made)
    assert known.tolist() == [True, True, False]
    assert [tuple(row) for row in found[:2].tolist()] == [codes["artículo 3"], codes["nuevo 7"]]


def test_texts_are_embedded_and_get_the_codes_of_add_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR2_CACHE", str(tmp_path / "cache"))
    names = [f"{colour} {kind}" for colour in ("red", "blue", "green", "white") for kind in ("soap", "comb", "oil")]
    blank: list[Any] = [None] * len(names)
    known = Catalog(list(names), list(names), blank, [[]] * len(names), blank, blank)
    with open_stage(tmp_path / "prepare", "prepare", TokenizeConfig(), {}, 0) as work:
        known.save(work.path / "items.parquet")
    prepare = {"prepare": Artifact.load(tmp_path / "prepare")}
    learnt = run(TokenizeConfig(levels=3, level_size=8), prepare, tmp_path / "tokenize", seed=0)
    new = {"item_id": [f"new {name}" for name in names], "title": [name.upper() for name in names], "price": blank}
    pq.write_table(pa.table({**new, "categories": [["Beauty"]] * len(names)}), tmp_path / "new.parquet")
    inputs = prepare | {"tokenize": learnt}
    added = add_items(inputs, tmp_path / "new.parquet", tmp_path / "added")
    made = encode(inputs, tmp_path / "new.parquet", tmp_path / "encode")
    assert made.file("codebook.bin").read_bytes() == added.file("codebook.bin").read_bytes()
    assert made.metrics["drift"] == pytest.approx(added.metrics["drift"], rel=1e-4)


def test_items_of_a_full_prefix_move_and_are_told_by_prefix(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    ids, rows = np.arange(1000, 1500), np.zeros((500, WIDTH), dtype=np.float32)
    rows[:3] = vectors(4, 3)
    made = encode(inputs, write(tmp_path / "items", ids, rows), tmp_path / "encode")
    codes = codes_of(made)
    assert made.metrics["overflow"] >= 497 - 64
    [full] = made.metrics["overflow_prefixes"]
    assert full["items"] == made.metrics["overflow"]
    assert sum(row[:2] == tuple(full["codes"]) for row in codes.values()) == 64
    assert len(set(codes.values())) == len(codes)
    assert len({row[0] for item, row in codes.items() if item >= 1003}) == 1


def test_content_of_which_there_is_too_much_is_refused(tmp_path: Path) -> None:
    inputs = tokenizer(tmp_path, levels=3, level_size=16)
    ids = np.arange(1000, 5000)
    with pytest.raises(ConfigError, match="4,600 items, but 3 levels of 16 codes make 4,096 IDs"):
        encode(inputs, write(tmp_path / "items", ids, vectors(2, 4000)), tmp_path / "encode")
    equal = np.ones((300, WIDTH), dtype=np.float32)
    with pytest.raises(ConfigError, match=r"all 256 IDs that begin with the codes \[\d+\] are taken"):
        encode(inputs, write(tmp_path / "equal", ids[:300], equal), tmp_path / "encode")


def test_wrong_items_are_refused_with_file_and_row(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    ids, rows = np.arange(1000, 3000), vectors(2, 2000)
    for value in (np.nan, np.inf, 1e30):
        wrong = rows.copy()
        wrong[1234, 3] = value
        items = write(tmp_path / "wrong", ids, wrong, group=100)
        with pytest.raises(DataError, match=r"0\.parquet, row 1235, column 'vector': NaN, infinite or too large value"):
            encode(inputs, items, tmp_path / "encode")
    ids[7] = 2999
    with pytest.raises(DataError, match=r"an item comes more than once in the files given: .*2999"):
        encode(inputs, write(tmp_path / "twice", ids, rows), tmp_path / "encode")
    assert not (tmp_path / "encode").exists()


def test_a_tokenizer_of_another_prepare_is_refused(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    other = {"prepare": replace(inputs["prepare"], digest="0" * 64), "tokenize": inputs["tokenize"]}
    with pytest.raises(ArtifactError, match="was made from another prepare; run tokenize again first"):
        encode(other, tmp_path, tmp_path / "encode")


class Lost(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("tasks", [1, 5, 9, 13, 18, 21])
def test_a_job_that_was_killed_goes_on_with_what_it_had_written(
    tmp_path: Path, inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, tasks: int
) -> None:
    monkeypatch.setattr(buckets, "BUCKET_ROWS", 600)
    items = write(tmp_path / "items", np.arange(1000, 1000 + NEW), vectors(2), files=8)
    left = tasks

    def lose() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Lost

    with pytest.raises(Lost):
        encode(inputs, items, tmp_path / "killed", Here(lose))
    scratch = tmp_path / "killed.partial" / "checkpoints"
    before = {path: path.stat().st_mtime_ns for path in scratch.glob("[!.]*-*")}
    made = encode(inputs, items, tmp_path / "killed", Here(lambda: check_kept(before)))
    assert made.digest == encode(inputs, items, tmp_path / "calm").digest


def check_kept(before: dict[Path, int]) -> None:
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_is_up_to_date_is_left_as_it_is(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    items = write(tmp_path / "items", np.arange(1000, 1100), vectors(2, 100))
    made = encode(inputs, items, tmp_path / "encode")

    def never() -> None:
        raise AssertionError

    assert encode(inputs, items, tmp_path / "encode", Here(never)) == made


def test_a_catalogue_that_grows_keeps_the_ids_it_had(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    first = write(tmp_path / "first", np.arange(1000, 1300), vectors(2, 300))
    second = write(tmp_path / "second", np.arange(1250, 1600), vectors(3, 350))
    before = codes_of(encode(inputs, first, tmp_path / "encode"))
    made = encode(inputs, second, tmp_path / "encode")
    after = codes_of(made)
    assert {item: after[item] for item in before} == before
    assert len(set(after.values())) == len(after) == KNOWN + 600
    assert made.metrics["added"] == 300
    assert len(CodebookFile(made.file("codebook.bin"))) == KNOWN + 600


def test_a_catalogue_keeps_its_ids_when_a_kill_left_them_half_moved(
    tmp_path: Path, inputs: dict[str, Artifact]
) -> None:
    """The state between the two renames of a commit: nothing is where the job's IDs were."""
    before = codes_of(
        encode(inputs, write(tmp_path / "a", np.arange(1000, 1300), vectors(2, 300)), tmp_path / "encode")
    )
    (tmp_path / "encode").rename(tmp_path / "encode.partial")
    after = codes_of(encode(inputs, write(tmp_path / "b", np.arange(1300, 1600), vectors(3, 300)), tmp_path / "encode"))
    assert {item: after[item] for item in before} == before
    assert len(set(after.values())) == len(after) == KNOWN + 600


def test_damaged_codes_of_an_earlier_job_are_refused(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    made = encode(inputs, write(tmp_path / "a", np.arange(1000, 1300), vectors(2, 300)), tmp_path / "encode")
    path = min((made.path / "codes").iterdir())
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"holds the only IDs .*codes/.*parquet: missing, or altered"):
        encode(inputs, write(tmp_path / "b", np.arange(1300, 1600), vectors(3, 300)), tmp_path / "encode")


def test_items_that_were_added_before_keep_their_ids(tmp_path: Path) -> None:
    run_inputs = tokenizer(tmp_path)
    write(tmp_path / "new", np.arange(1000, 1050), vectors(2, 50))
    pq.write_table(table(np.arange(1000, 1050), vectors(2, 50)), tmp_path / "new.parquet")
    add_items(
        run_inputs, tmp_path / "new.parquet", tmp_path / "tokenize-add", wanted(run_inputs, tmp_path / "new.parquet")
    )
    added = CodebookFile(tmp_path / "tokenize-add" / "codebook.bin").lookup(np.arange(1000, 1050))[0]
    items = write(tmp_path / "items", np.arange(1020, 1200), vectors(4, 180))
    after = codes_of(encode(run_inputs, items, tmp_path / "encode"))
    assert [after[item] for item in range(1000, 1050)] == list(map(tuple, added.tolist()))
    assert len(set(after.values())) == len(after) == KNOWN + 200
    pq.write_table(table(np.arange(2000, 2010), vectors(5, 10)), tmp_path / "more.parquet")
    add_items(
        run_inputs, tmp_path / "more.parquet", tmp_path / "tokenize-add", wanted(run_inputs, tmp_path / "more.parquet")
    )
    with pytest.raises(ArtifactError, match="items were added since"):
        encode(run_inputs, items, tmp_path / "encode")


def test_a_file_that_kills_its_workers_is_given_up(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    items = write(tmp_path / "items", np.arange(1000, 1100), vectors(2, 100))
    scratch = tmp_path / "encode.partial" / "checkpoints"

    def died() -> None:
        (scratch / ".unit-000000.arrow.attempts").write_text("...")

    with pytest.raises(Gr2Error, match=r"unit-000000\.arrow: 3 workers died while making it; .* fewer workers"):
        encode(inputs, items, tmp_path / "encode", Here(died))
    assert encode(inputs, items, tmp_path / "encode").metrics["added"] == 100


def wanted(inputs: dict[str, Artifact], vectors: Path) -> TokenizeConfig:
    return configuration.build(TokenizeConfig, inputs["tokenize"].config | {"vectors": str(vectors)}, "tokenize")

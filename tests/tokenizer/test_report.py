"""The report on semantic IDs: its figures, its groups and neighbours, the picture and the page."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from gr2.artifact import Artifact, open_stage
from gr2.catalog import Catalog
from gr2.errors import ArtifactError, Gr2Error
from gr2.tokenizer.report import SemanticIds, largest_groups, level_usage, prefix_neighbours, tokenizer_report
from gr2.tokenizer.report_page import report_page, write_report
from gr2.tokenizer.report_picture import usage_picture
from gr2.tokenizer.tokenize import TokenizeConfig

CODES = np.array([[0, 0, 1], [0, 0, 2], [0, 1, 0], [3, 0, 0]], dtype=np.uint16)
SMALL_CODES = arrays.arrays(np.uint16, st.tuples(st.integers(0, 12), st.integers(2, 4)), elements=st.integers(0, 3))
PNG = b"\x89PNG\r\n\x1a\n"


def shop(items: int, *, blank: bool = False) -> Catalog:
    titles: list[str | None] = [None if blank else f"Title {item}" for item in range(items)]
    categories = [[] if blank else ["Shop", "even" if item % 2 == 0 else "odd"] for item in range(items)]
    return Catalog(
        [100 + item for item in range(items)], titles, [None] * items, categories, [None] * items, [None] * items
    )


def ids_of(codes: NDArray[np.uint16], catalog: Catalog, level_size: int = 4, **options: Any) -> SemanticIds:
    config = TokenizeConfig(levels=codes.shape[1], level_size=level_size, **options)
    figures = {"nearest_unique": 0.5, "reassigned": 0.25, "overflow": 0}
    return SemanticIds(
        codes, catalog, config, figures, [0.1] * codes.shape[1], {"prepare": "p", "tokenize": "t"}, "run"
    )


def made(folder: Path, codes: NDArray[Any], catalog: Catalog, **metrics: Any) -> dict[str, Artifact]:
    """The artefacts of a run with these codes, of 4 values."""
    config = TokenizeConfig(levels=3, level_size=4)
    with open_stage(folder / "prepare", "prepare", TokenizeConfig(), {}, 0) as work:
        catalog.save(work.path / "items.parquet")
    prepare = Artifact.load(folder / "prepare")
    with open_stage(folder / "tokenize", "tokenize", config, {"prepare": prepare.digest}, 0) as work:
        np.save(work.path / "codes.npy", codes)
        levels = [{"reconstruction_error": error} for error in (0.5, 0.25, 0.125)]
        work.metrics |= {"nearest_unique": 0.75, "reassigned": 0.25, "overflow": 1, "levels": levels} | metrics
    return {"prepare": prepare, "tokenize": Artifact.load(folder / "tokenize")}


def test_usage_of_known_codes() -> None:
    first, second, third = level_usage(CODES, 4)
    assert (first["codes_used"], second["codes_used"], third["codes_used"]) == (2, 2, 3)
    assert (first["top_code"], first["top_share"]) == (0, 0.75)
    assert first["entropy_bits"] == pytest.approx(0.811, abs=1e-3)
    assert third["perplexity"] == pytest.approx(2**1.5)
    assert [level["prefixes"] for level in (first, second, third)] == [2, 3, 4]
    assert [level["largest_prefix"] for level in (first, second, third)] == [3, 2, 1]
    assert [level["alone"] for level in (first, second, third)] == [0.25, 0.5, 1.0]


@settings(deadline=None)
@given(SMALL_CODES)
def test_bits_that_levels_add_are_those_of_the_whole_id(codes: NDArray[np.uint16]) -> None:
    usage = level_usage(codes, 4)
    counts = np.unique(codes, axis=0, return_counts=True)[1]
    whole = -sum(count / len(codes) * math.log2(count / len(codes)) for count in counts.tolist())
    assert sum(level["added_bits"] for level in usage) == pytest.approx(whole, abs=1e-9)
    assert all(level["added_bits"] <= level["entropy_bits"] + 1e-9 <= 2.0 + 2e-9 for level in usage)


def test_items_with_one_id_are_the_largest_groups() -> None:
    codes = CODES[[0, 1, 1, 2, 1, 0]]
    groups = largest_groups(codes, shop(6), 3)
    assert (groups["groups"], groups["items"]) == (2, 5)
    assert [group["items"] for group in groups["largest"]] == [3, 2]
    assert groups["largest"][0]["prefix"] == [0, 0, 2]
    assert [item["item_id"] for item in groups["largest"][0]["some"]] == [101, 102, 104]
    assert groups["largest"][0]["some"][0]["title"] == "Title 1"


def test_groups_and_their_items_are_bounded() -> None:
    codes = np.stack([np.arange(400) // 20, np.arange(400) % 20], axis=1).astype(np.uint16)
    groups = largest_groups(codes, shop(400), 1)
    assert (groups["groups"], groups["items"], len(groups["largest"])) == (20, 400, 10)
    assert all(group["items"] == 20 and len(group["some"]) == 8 for group in groups["largest"])
    assert largest_groups(codes, shop(400), 2)["largest"] == []


def test_groups_are_those_that_drawn_codes_tell_apart() -> None:
    report = tokenizer_report(ids_of(CODES, shop(4), last_level="random", random_levels=2))
    assert (report["same_prefix"]["length"], report["same_prefix"]["items"]) == (1, 3)


@settings(deadline=None)
@given(SMALL_CODES, st.integers(0, 2**32))
def test_neighbours_share_the_longest_prefixes(codes: NDArray[np.uint16], seed: int) -> None:
    catalog = shop(len(codes))
    samples = prefix_neighbours(codes, catalog, samples=3, seed=seed)
    assert len({sample["item_id"] for sample in samples}) == len(samples) == min(3, len(codes))
    rows = codes.tolist()
    for sample in samples:
        own = rows[catalog.index[sample["item_id"]]]
        depths = sorted(
            (
                next((place for place, (a, b) in enumerate(zip(own, row, strict=True)) if a != b), len(own))
                for other, row in zip(catalog.ids, rows, strict=True)
                if other != sample["item_id"]
            ),
            reverse=True,
        )
        assert [item["shared"] for item in sample["neighbours"]] == [depth for depth in depths[:5] if depth]
        assert sample["sharing"] == [sum(depth > level for depth in depths) for level in range(len(own))]
        for item in sample["neighbours"]:
            assert item["codes"][: item["shared"]] == own[: item["shared"]]
            assert item["same_category"] is (item["item_id"] % 2 == sample["item_id"] % 2)


def test_samples_are_those_of_the_seed() -> None:
    codes = np.random.default_rng(0).integers(0, 4, size=(200, 3)).astype(np.uint16)
    drawn = [prefix_neighbours(codes, shop(200), samples=8, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [sample["item_id"] for sample in drawn[0]] != sorted(sample["item_id"] for sample in drawn[0])


@pytest.mark.parametrize("items", [0, 1, 4])
def test_a_catalogue_without_items_titles_or_categories_has_a_report(items: int) -> None:
    ids = ids_of(CODES[:items], shop(items, blank=True))
    report = tokenizer_report(ids)
    assert json.loads(json.dumps(report, allow_nan=False))["summary"]["items"] == items
    assert report["category_agreement"] is None
    assert report["summary"]["without_title"] == report["summary"]["without_category"] == items
    assert all(item["same_category"] is None for sample in report["samples"] for item in sample["neighbours"])
    picture = usage_picture(ids.codes, report["levels"], 4)
    assert picture.startswith(PNG)
    page = report_page(report, picture).decode()
    assert ("<i>no title</i>" in page) == (items > 0)
    assert "None: every item has its own." in page


def test_codes_of_many_values_fit_the_picture() -> None:
    codes = np.random.default_rng(0).integers(0, 65_536, size=(2_000, 8)).astype(np.uint16)
    assert usage_picture(codes, level_usage(codes, 65_536), 65_536).startswith(PNG)


class Tags(HTMLParser):
    """The tags of a page, its addresses, and whether every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_escapes_what_others_wrote() -> None:
    hostile = "</td><script>alert('1')</script>{{ 7 * 7 }}\x1b[2J"
    catalog = Catalog(
        [hostile + str(row) for row in range(4)], [hostile] * 4, [None] * 4, [[hostile]] * 4, [None] * 4, [None] * 4
    )  # type: ignore[arg-type]
    report = tokenizer_report(ids_of(CODES[[0, 0, 1, 2]], catalog))
    tags = Tags()
    page = report_page({**report, "run": hostile + "\udcff"}, PNG).decode()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    assert not {"script", "link", "iframe", "a"} & set(tags.tags)
    assert [address.partition(",")[0] for address in tags.addresses] == ["data:image/png;base64"]
    assert "&lt;script&gt;alert" in page
    assert "{{ 7 * 7 }}" in page


def test_long_titles_are_cut_on_the_page_and_whole_in_the_record() -> None:
    catalog = Catalog([1, 2], ["x" * 5_000] * 2, [None] * 2, [[]] * 2, [None] * 2, [None] * 2)
    report = tokenizer_report(ids_of(CODES[:2], catalog))
    assert len(report["samples"][0]["title"]) == 5_000
    assert "x" * 161 not in report_page(report, PNG).decode()


def test_files_say_the_same_each_time(tmp_path: Path) -> None:
    inputs = made(tmp_path, CODES, shop(4))
    report = write_report(inputs, tmp_path / "new" / "report", samples=2, seed=3)
    files = {path.name: path.read_bytes() for path in (tmp_path / "new" / "report").iterdir()}
    assert sorted(files) == ["tokenizer.html", "tokenizer.json", "tokenizer.png"]
    assert json.loads(files["tokenizer.json"]) == json.loads(json.dumps(report))
    assert (report["run"], report["sources"]["tokenize"]) == (tmp_path.name, inputs["tokenize"].digest)
    assert [level["reconstruction_error"] for level in report["levels"]] == [0.5, 0.25, 0.125]
    assert report["summary"]["nearest_unique"] == 0.75
    write_report(inputs, tmp_path / "new" / "report", samples=2, seed=3)
    assert {path.name: path.read_bytes() for path in (tmp_path / "new" / "report").iterdir()} == files


def test_an_error_leaves_the_earlier_report(tmp_path: Path) -> None:
    out = tmp_path / "report"
    write_report(made(tmp_path / "first", CODES, shop(4)), out)
    before = (out / "tokenizer.json").read_bytes()
    with pytest.raises(ArtifactError):
        write_report(made(tmp_path / "second", CODES[:3], shop(4)), out)
    assert (out / "tokenizer.json").read_bytes() == before
    assert len(list(out.iterdir())) == 3


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (CODES[:3], r"codes\.npy: expected uint16 \(4, 3\), got uint16 \(3, 3\); run tokenize again"),
        (CODES[:, :2], r"expected uint16 \(4, 3\), got uint16 \(4, 2\)"),
        (CODES.astype(np.int64), r"expected uint16 \(4, 3\), got int64 \(4, 3\)"),
        (CODES[:, 0], r"expected uint16 \(4, 3\), got uint16 \(4,\)"),
        (CODES + np.uint16(2), r"expected codes below 4, got 5"),
    ],
)
def test_codes_of_something_else_are_refused(tmp_path: Path, codes: NDArray[Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        SemanticIds.load(made(tmp_path, codes, shop(4)))


@pytest.mark.parametrize("metrics", [{"levels": []}, {"nearest_unique": None}, {"overflow": "many"}])
def test_metrics_of_something_else_are_refused(tmp_path: Path, metrics: dict[str, Any]) -> None:
    with pytest.raises(Gr2Error, match=r"artifact\.json: these are not the metrics of tokenize; run tokenize again"):
        SemanticIds.load(made(tmp_path, CODES, shop(4), **metrics))


def test_artefacts_of_two_runs_are_refused(tmp_path: Path) -> None:
    inputs = made(tmp_path / "one", CODES, shop(4)) | {"prepare": made(tmp_path / "two", CODES, shop(3))["prepare"]}
    with pytest.raises(ArtifactError, match="was made from another prepare; run tokenize again first"):
        SemanticIds.load(inputs)

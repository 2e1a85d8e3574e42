from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr2.catalog import Catalog
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.data.imported_lists import Split, import_lists
from gr2.errors import DataError

ITEMS = [f"item{number}" for number in range(8)]
INF = np.inf
ONE: dict[str, Any] = {"user_id": [70], "candidates": [["item1", "item2"]]}


def make_dataset(ids: list[Any]) -> Dataset:
    """User 70 with events 0, 1, 2 and user 30 with events 3, 4, 5, 6, 7."""
    count = len(ids)
    catalog = Catalog(ids, [None] * count, [None] * count, [[]] * count, [None] * count, [None] * count)
    offsets = np.array([0, 3, 8], dtype=np.int64)
    return Dataset(catalog, [70, 30], offsets, np.arange(8, dtype=np.int32), np.full(8, np.nan), np.zeros(2, np.bool_))


@pytest.fixture
def dataset() -> Dataset:
    return make_dataset(list(ITEMS))


def write(folder: Path, **columns: Any) -> Path:
    path = folder / "lists.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def assert_same(left: CandidateLists, right: CandidateLists) -> None:
    for name in ("user", "position", "target", "candidates", "scores"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), strict=True)


@pytest.mark.parametrize(("split", "positions", "targets"), [("test", [2, 4], [2, 7]), ("val", [1, 3], [1, 6])])
def test_the_splits_target_is_the_default_position(
    tmp_path: Path, dataset: Dataset, split: Split, positions: list[int], targets: list[int]
) -> None:
    columns = {"user_id": [30, 70], "candidates": [["item6", "item1"], ["item5", "item2", "item0"]]}
    imported = import_lists(write(tmp_path, **columns), dataset, split=split)
    assert imported.user.tolist() == [0, 1]
    assert imported.position.tolist() == positions
    assert imported.target.tolist() == targets
    assert imported.candidates.tolist() == [[5, 2, 0], [6, 1, -1]]
    assert imported.features is None
    np.testing.assert_array_equal(imported.scores, np.array([[0, -1, -2], [0, -1, -INF]], dtype=np.float32))
    again = import_lists(write(tmp_path, **columns, position=positions[::-1]), dataset, split=split)
    assert_same(again, imported)


def test_training_lists_are_for_the_positions_given(tmp_path: Path, dataset: Dataset) -> None:
    path = write(tmp_path, user_id=[30, 70, 30], position=[2, 0, 1], candidates=[["item0"], ["item1"], ["item2"]])
    imported = import_lists(path, dataset, split="train")
    assert imported.user.tolist() == [0, 1, 1]
    assert imported.position.tolist() == [0, 1, 2]
    assert imported.target.tolist() == [0, 4, 5]
    assert imported.candidates.tolist() == [[1], [2], [0]]


def test_integer_ids_are_found(tmp_path: Path) -> None:
    path = write(tmp_path, user_id=pa.array([30], pa.int32()), candidates=[[107, 100]])
    assert import_lists(path, make_dataset([100 + n for n in range(8)])).candidates.tolist() == [[7, 0]]


@pytest.mark.parametrize("kind", [pa.large_list(pa.large_string()), pa.list_(pa.string(), 2)])
def test_any_sort_of_list_is_read(tmp_path: Path, dataset: Dataset, kind: Any) -> None:
    candidates = pa.array([["item6", "item1"], ["item5", "item2"]], kind)
    imported = import_lists(write(tmp_path, user_id=[30, 70], candidates=candidates), dataset)
    assert imported.candidates.tolist() == [[5, 2], [6, 1]]


def test_the_order_of_imported_rows_changes_nothing(tmp_path: Path, dataset: Dataset) -> None:
    rows = [(30, ["item6", "item1"], [0.5, 0.5]), (70, ["item5", "item2"], [3.0, -1.0])]
    imported = []
    for order in (rows, rows[::-1]):
        users, candidates, scores = zip(*order, strict=True)
        imported.append(import_lists(write(tmp_path, user_id=users, candidates=candidates, scores=scores), dataset))
    assert_same(*imported)
    assert imported[0].scores.tolist() == [[3.0, -1.0], [0.5, 0.5]]


@pytest.mark.parametrize(
    "features",
    [
        [[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [[7.0, 8.0]]],
        [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [7.0, 8.0]],
        [[1, 2, 3, 4, 5, 6], [7, 8]],
        pa.array([[[1, 2], [3, 4], [5, 6]], [[7, 8]]], pa.list_(pa.list_(pa.float32(), 2))),
    ],
    ids=["nested", "flat", "integers", "fixed size"],
)
def test_features_belong_to_their_candidates(tmp_path: Path, dataset: Dataset, features: Any) -> None:
    columns = {"user_id": [30, 70], "candidates": [["item6", "item1", "item0"], ["item5"]]}
    imported = import_lists(write(tmp_path, **columns, features=features), dataset)
    assert imported.features is not None
    assert imported.features.dtype == np.float32
    assert imported.features.tolist() == [[[7, 8], [0, 0], [0, 0]], [[1, 2], [3, 4], [5, 6]]]


def test_one_ranker_is_chosen(tmp_path: Path, dataset: Dataset) -> None:
    columns = {"user_id": [30, 30], "candidates": [["item0"], ["item1"]]}
    for ranker in (["a", "b"], pa.array(["a", "b"]).dictionary_encode()):
        path = write(tmp_path, ranker=ranker, **columns)
        assert import_lists(path, dataset, ranker="b").candidates.tolist() == [[1]]
        with pytest.raises(DataError, match="choose one of a, b"):
            import_lists(path, dataset)
        with pytest.raises(DataError, match="no ranker 'c'; the file has a, b"):
            import_lists(path, dataset, ranker="c")
    with pytest.raises(DataError, match=r"column 'ranker': no such column, so the ranker 'a'"):
        import_lists(write(tmp_path, **columns), dataset, ranker="a")


def test_errors_count_the_rows_of_all_rankers(tmp_path: Path, dataset: Dataset) -> None:
    columns = {"user_id": [30, 30, 70], "candidates": [["item0"], ["nothing"], ["item9"]]}
    with pytest.raises(DataError, match="row 3, column 'candidates': unknown item 'item9'"):
        import_lists(write(tmp_path, ranker=["a", "b", "a"], **columns), dataset, ranker="a")


BAD_COLUMNS: list[tuple[dict[str, Any], str]] = [
    ({"user_id": [70]}, r"lists.parquet, column 'candidates': required column is missing; columns: user_id"),
    ({"user_id": pa.array([], pa.int64()), "candidates": pa.array([], pa.list_(pa.string()))}, "has no rows"),
    ({"user_id": [70, 71], "candidates": [["item0"], ["item1"]]}, r"row 2, column 'user_id': unknown user 71: .*core"),
    ({"user_id": [70, 70], "candidates": [["item0"], ["item1"]]}, r"row 2.*user 70 has a list in row 1 already"),
    ({**ONE, "user_id": ["70"]}, "column 'user_id': expected integers, .* got string"),
    ({**ONE, "user_id": [[70]]}, "column 'user_id': expected integers, .* got list<"),
    ({**ONE, "user_id": [70.0]}, "column 'user_id': expected integers, .* got double"),
    ({"user_id": [70, None], "candidates": [["item0"], ["item1"]]}, "row 2, column 'user_id': is null"),
    (
        {"user_id": [70], "candidates": [["item0", "item9"]]},
        "row 1, column 'candidates': unknown item 'item9'.*core = 0",
    ),
    ({"user_id": [70], "candidates": [["item1", "item0", "item1"]]}, r"row 1.*candidate 'item1' comes twice"),
    ({"user_id": [30, 70], "candidates": [["item1"], []]}, r"row 2, column 'candidates': no candidates"),
    ({"user_id": [70], "candidates": [[]]}, "row 1, column 'candidates': no candidates"),
    ({"user_id": [30, 70], "candidates": [["item1"], None]}, r"row 2, column 'candidates': is null"),
    ({"user_id": [30, 70], "candidates": [["item1"], ["item0", None]]}, "row 2, column 'candidates': .* holds a null"),
    ({"user_id": [70], "candidates": [[1, 2]]}, "column 'candidates': expected strings, .* got int64"),
    ({"user_id": [70], "candidates": [3]}, "column 'candidates': expected a list in each row, got int64"),
    ({"user_id": [70], "candidates": [[["item1"]]]}, "column 'candidates': expected strings, .* got list<"),
    ({**ONE, "ranker": [3]}, "column 'ranker': expected strings, got int64"),
    ({**ONE, "ranker": [None]}, "row 1, column 'ranker': is null"),
    ({**ONE, "position": [1]}, "row 1, column 'position': position 1 is not in the test split.*user 70, expected 2"),
    ({**ONE, "position": [2.0]}, "column 'position': expected integers, got double"),
    ({**ONE, "position": pa.array([2**63], pa.uint64())}, "column 'position': cannot be read as int64"),
]


@pytest.mark.parametrize(("columns", "message"), BAD_COLUMNS)
def test_imported_lists_that_do_not_fit_are_refused(
    tmp_path: Path, dataset: Dataset, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        import_lists(write(tmp_path, **columns), dataset)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[1.0, 2.0]], "row 1, column 'scores': must not increase"),
        ([[1.0]], "row 1, column 'scores': 1 scores for 2 candidates"),
        ([["a", "b"]], "column 'scores': expected lists of numbers, got lists of string"),
        ([1.0], "column 'scores': expected a list in each row, got double"),
        ([[1.0, None]], "row 1, column 'scores': the list holds a null"),
        ([None], "row 1, column 'scores': is null"),
        ([[1.0, np.nan]], "row 1, column 'scores': must be finite float32, got nan"),
        ([[1e300, 0.0]], r"row 1, column 'scores': must be finite float32, got 1e\+300"),
    ],
)
def test_scores_that_do_not_fit_are_refused(tmp_path: Path, dataset: Dataset, scores: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        import_lists(write(tmp_path, **ONE, scores=scores), dataset)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([[[1.0], [2.0]], [[1.0, 1.0]]], "row 2, column 'features': 2 features a candidate, where row 1 has 1"),
        ([[[1.0], [2.0, 3.0]], [[1.0]]], "row 1, column 'features': 2 features a candidate, where row 1 has 1"),
        ([[[1.0]], [[1.0]]], "row 1, column 'features': features of 1 candidates for 2"),
        ([[1.0, 2.0, 3.0], [1.0]], "row 1, column 'features': 3 values cannot be divided among 2 candidates"),
        ([[1.0, 2.0], [1.0, 2.0]], "row 2, column 'features': 2 features a candidate, where row 1 has 1"),
        ([[], []], "column 'features': holds no features"),
        ([[[1.0], [2.0]], [[np.nan]]], "row 2, column 'features': must be finite float32, got nan"),
        ([[[1.0], [2.0]], [[None]]], "row 2, column 'features': the list holds a null"),
        ([[[1.0], [2.0]], [None]], "row 2, column 'features': the list holds a null"),
        ([[[1.0], [2.0]], None], "row 2, column 'features': is null"),
        ([["a", "b"], ["c"]], "column 'features': expected lists of numbers, got lists of string"),
        ([1.0, 2.0], "column 'features': expected a list in each row, got double"),
    ],
)
def test_features_that_do_not_fit_are_refused(tmp_path: Path, dataset: Dataset, features: Any, message: str) -> None:
    path = write(tmp_path, user_id=[70, 30], candidates=[["item1", "item2"], ["item3"]], features=features)
    with pytest.raises(DataError, match=message):
        import_lists(path, dataset)


@pytest.mark.parametrize(
    ("split", "columns", "message"),
    [
        ("train", {}, "column 'position': training lists need it"),
        ("train", {"position": [1]}, "row 1, column 'position': position 1 .* train split.*expected 0 to 0"),
        ("train", {"position": [2]}, "position 2 is not in the train split"),
        ("train", {"position": [-1]}, "position -1 is not in the train split"),
        ("val", {"position": [2]}, "row 1, column 'position': position 2 is not in the val split.*expected 1"),
        ("val", {"position": [0]}, "position 0 is not in the val split"),
        ("test", {"position": [3]}, "position 3 is not in the test split"),
    ],
)
def test_positions_of_another_split_are_refused(
    tmp_path: Path, dataset: Dataset, split: Split, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        import_lists(write(tmp_path, **ONE, **columns), dataset, split=split)


def test_a_training_position_that_comes_twice_is_refused(tmp_path: Path, dataset: Dataset) -> None:
    path = write(tmp_path, user_id=[30, 30, 30], position=[1, 0, 1], candidates=[["item1"], ["item1"], ["item2"]])
    with pytest.raises(DataError, match="row 3, column 'user_id': user 30 has a list for position 1 in row 1 already"):
        import_lists(path, dataset, split="train")


def test_a_column_that_comes_twice_is_refused(tmp_path: Path, dataset: Dataset) -> None:
    table = pa.Table.from_arrays(
        [pa.array([70]), pa.array([["item1"]]), pa.array([["item2"]])], ["user_id", *["candidates"] * 2]
    )
    pq.write_table(table, tmp_path / "lists.parquet")
    with pytest.raises(DataError, match="column 'candidates': appears more than once"):
        import_lists(tmp_path / "lists.parquet", dataset)


@pytest.mark.parametrize("content", [b"", b"not parquet"])
def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path, dataset: Dataset, content: bytes) -> None:
    (tmp_path / "lists.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"lists\.parquet: cannot read candidate lists"):
        import_lists(tmp_path / "lists.parquet", dataset)

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr2.data.columns import TableFile
from gr2.data.tables import read_table
from gr2.errors import DataError

RECORDS = [{"user_id": f"u{n}", "item_id": f"i{n % 3}", "timestamp": 10 * n} for n in range(6)]


def write(path: Path, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path: Path) -> TableFile:
    return read_table(path, required=("user_id", "item_id"), numeric=("timestamp",))


def delimited(delimiter: str) -> str:
    rows = [list(RECORDS[0]), *([str(value) for value in record.values()] for record in RECORDS)]
    return "\n".join(delimiter.join(row) for row in rows) + "\n"


@pytest.mark.parametrize(
    "name", ["t.csv", "t.csv.gz", "t.tsv", "t.jsonl", "t.jsonl.gz", "t.json", "t.ndjson", "t.parquet"]
)
def test_every_format_gives_the_same_columns(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if ".parquet" in name:
        pq.write_table(pa.Table.from_pylist(RECORDS), path)
    elif "json" in name:
        write(path, "\n".join(json.dumps({"noise": {"a": [1]}, **record}) for record in RECORDS))
    else:
        write(path, delimited("\t" if ".tsv" in name else ","))
    file = read(path)
    users, items = file.ids("user_id"), file.ids("item_id")
    assert [users.values[code].as_py() for code in users.codes.tolist()] == [record["user_id"] for record in RECORDS]
    assert items.codes.tolist() == [0, 1, 2, 0, 1, 2]
    assert file.numbers("timestamp").tolist() == [0, 10, 20, 30, 40, 50]
    assert users.kind == ("string" if "json" in name or "parquet" in name else "text")


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("t.parquet", b"user_id,item_id\n", "not a readable Parquet file"),
        ("t.csv", b"", "is empty"),
        ("t.csv", b"user_id,item_id,timestamp\n", "has no rows"),
        ("t.csv", b"userid,item_id,timestamp\nu,i,1\n", "column 'user_id': required column is missing; .*'userid'"),
        ("t.csv", b"a,item_id\nu,i\n", "column 'user_id': .*columns: a, item_id"),
        ("t.csv", b"user_id,item_id\nu,i\nv,j,k\n", "row 2: has 3 values, the header has 2"),
        ("t.csv", b"user_id,item_id\nu,i\nv,\xff\n", "row 2, column 'item_id': is not valid UTF-8"),
        ("t.csv", "user_id,item_id\nu,i\n".encode("utf-16"), "cannot be read as UTF-8 CSV"),
        ("t.csv", b"user_id,item_id,user_id\nu,i,v\n", "column 'user_id': appears more than once"),
        ("t.csv", b"user_id,item_id,timestamp,timestamp\nu,i,1,2\n", "column 'timestamp': appears more than once"),
        ("t.csv.gz", b"", "is empty"),
        ("t.jsonl", b"", "has no rows"),
        ("t.jsonl", b"\n\n", "has no rows"),
        ("t.jsonl", b'{"user": "u", "item_id": "i"}\n', "column 'user_id': .*the nearest column is 'user'"),
        ("t.jsonl", b'{"user_id": "u", "item_id": "i"}\n{"user_id": "v"\n', "row 2: is not a JSON object"),
        ("t.jsonl", b'[{"user_id": "u", "item_id": "i"}]\n', "row 1: expected one JSON object a line, found list"),
        ("t.jsonl", b'{"user_id": "u", "item_id": "i"}\n{"user_id": 3}\n', "row 2, column 'user_id': expected str"),
        ("t.jsonl", b'{"user_id": 1, "item_id": 2}\n{"user_id": "x"}\n', "row 2, column 'user_id': expected int"),
        ("t.jsonl", b'{"user_id": "u", "item_id": ["i"]}\n', "row 1, column 'item_id': expected str, found list"),
        ("t.jsonl", b'{"user_id": 1.5, "item_id": 2}\n', "row 1, column 'user_id'"),
        ("t.jsonl", b'{"user_id": "\xff", "item_id": 2}\n', "row 1: is not valid UTF-8"),
        ("t.xlsx", b"PK", "cannot tell the format from the name"),
    ],
)  # fmt: skip
def test_files_that_are_not_what_their_name_says_are_refused(
    tmp_path: Path, name: str, data: bytes, complaint: str
) -> None:
    path = write(tmp_path / name, data)
    with pytest.raises(DataError, match=complaint) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


def test_a_parquet_column_that_appears_twice_is_refused(tmp_path: Path) -> None:
    columns = [pa.array(["u"]), pa.array(["i"]), pa.array([1]), pa.array([2])]
    pq.write_table(pa.table(columns, ["user_id", "item_id", "timestamp", "timestamp"]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="column 'timestamp': appears more than once"):
        read(tmp_path / "t.parquet")


@pytest.mark.parametrize(("late", "expected"), [(7.5, 7.5), ("1970-01-02", 86400.0)])
def test_a_column_that_a_long_json_file_has_late_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: object, expected: float
) -> None:
    monkeypatch.setattr("gr2.data.tables.JSON_SAMPLE", 3)
    record = {"user_id": "u", "item_id": "i"}
    path = tmp_path / "t.jsonl"
    write(path, "\n".join(json.dumps(each) for each in [record] * 5))
    assert "timestamp" not in read(path)
    write(path, "\n".join(json.dumps(each) for each in [*[record] * 5, {**record, "timestamp": late}]))
    np.testing.assert_array_equal(read(path).numbers("timestamp", dates=True), [np.nan] * 5 + [expected])


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    for name in ("t.csv.gz", "t.jsonl.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"user_id,item_id\n" * 1000)[:40])
        with pytest.raises(DataError, match=name):
            read(tmp_path / name)
        (tmp_path / name).write_bytes(b"user_id,item_id\nu,i\n")
        with pytest.raises(DataError, match=name):
            read(tmp_path / name)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.csv: no such file"):
        read(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path)


def test_quoted_values_may_hold_delimiters_and_newlines(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", '\ufeffuser_id,item_id\n"u,1","i\n2"\n')
    assert read(path).ids("user_id").values.to_pylist() == ["u,1"]
    assert read(path).ids("item_id").values.to_pylist() == ["i\n2"]


def test_numbers_of_a_long_csv_file_may_change_their_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gr2.data.tables.BLOCK_BYTES", 100)
    head = "user_id,item_id,timestamp\n"
    for first, then in (("7", "7.5"), ("", "9"), ("1.5", "")):
        path = write(tmp_path / "t.csv", head + f"u,i,{first}\n" * 50 + f"u,i,{then}\n")
        expected = [float(first or "nan")] * 50 + [float(then or "nan")]
        np.testing.assert_array_equal(read(path).numbers("timestamp"), expected)
    path = write(tmp_path / "t.csv", head + "u,i,7\n" * 50 + "u,i,soon\n")
    with pytest.raises(DataError, match="row 51, column 'timestamp': must be a number, got 'soon'"):
        read(path).numbers("timestamp")


def parquet(tmp_path: Path, column: pa.Array) -> TableFile:
    pq.write_table(pa.table({"user_id": column}), tmp_path / "c.parquet")
    return read_table(tmp_path / "c.parquet", required=("user_id",))


@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        (pa.array(["a", None, None]), "row 2, column 'user_id': is missing"),
        (pa.array(["a", "b", "  "]), "row 3, column 'user_id': is empty"),
        (pa.array([1, None]), "row 2, column 'user_id': is missing"),
        (pa.array([1.5]), "must be text or 64-bit integers, got double"),
        (pa.array([True]), "must be text or 64-bit integers, got bool"),
        (pa.array([2**63], pa.uint64()), "must be text or 64-bit integers"),
        (pa.nulls(2), "row 1, column 'user_id': is missing"),
    ],
)
def test_bad_ids_are_refused_with_their_row(tmp_path: Path, column: pa.Array, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        parquet(tmp_path, column).ids("user_id")


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", "b", "a"]).dictionary_encode(),
        pa.array(["a", "b", "a"], pa.large_string()),
        pa.array(["a", "b", "a"], pa.string_view()),
    ],
)
def test_every_arrow_text_type_is_text(tmp_path: Path, column: pa.Array) -> None:
    ids = parquet(tmp_path, column).ids("user_id")
    assert (ids.kind, ids.codes.tolist(), ids.values.to_pylist()) == ("string", [0, 1, 0], ["a", "b"])


@pytest.mark.parametrize(
    ("spelling", "integral"), [("12", True), ("-4", True), ("012", False), ("1.0", False), ("x", False)]
)
def test_text_ids_are_integers_only_in_their_usual_spelling(tmp_path: Path, spelling: str, integral: bool) -> None:
    path = write(tmp_path / "t.csv", f"user_id,item_id\n7,i\n{spelling},i\n")
    assert read(path).ids("user_id").is_integral() is integral


@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        (pa.array([1.0, float("nan")]), "row 2, column 'user_id': must be finite, got nan"),
        (pa.array([1.0, 2.0, float("-inf")]), "row 3, column 'user_id': must be finite, got -inf"),
        (pa.array([1, 2**60]), "row 2, column 'user_id': is too large"),
        (pa.array(["1", "soon"]), "row 2, column 'user_id': must be a number.*'soon'"),
        (pa.array([False]), "must be a number.*got bool"),
        (pa.array([1], pa.duration("s")), r"must be a number.*got duration\[s\]"),
        (pa.array([2**60], pa.timestamp("ms")), "column 'user_id': is out of range"),
        (
            pa.array([None, "2024-01-01", "2024-01-02", "2024-01-02T00:00:00Z"]),
            "row 4, column 'user_id': must be spelled as in row 2 .*'2024-01-01'.*, got '2024-01-02T00:00:00Z'",
        ),
        (pa.array(["5", "2024-01-01"]), "row 2, column 'user_id': must be spelled as in row 1 .*'5'"),
    ],
)
def test_bad_numbers_are_refused_with_their_row(tmp_path: Path, column: pa.Array, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        parquet(tmp_path, column).numbers("user_id", dates=True)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([86400, None]),
        pa.array([86400.0, None]),
        pa.array(["86400", ""]),
        pa.array(["1970-01-02", None]),
        pa.array(["1970-01-02T00:00:00", None]),
        pa.array(["1970-01-02T01:00:00+01:00", None]),
        pa.array([86400 * 10**9, None], pa.timestamp("ns")),
        pa.array([86400 * 10**9 + 999, None], pa.timestamp("ns", "UTC")),
        pa.array([86400, None], pa.timestamp("s", "Europe/Rome")),
        pa.array([1, None], pa.date32()),
    ],
)
def test_numbers_and_date_times_become_seconds(tmp_path: Path, column: pa.Array) -> None:
    np.testing.assert_array_equal(parquet(tmp_path, column).numbers("user_id", dates=True), [86400.0, np.nan])


def test_date_times_are_no_plain_numbers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be a number"):
        parquet(tmp_path, pa.array([1], pa.timestamp("s"))).numbers("user_id")

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gr2.data.formats import Imported, import_amazon, import_movielens
from gr2.data.prepare import PrepareConfig, prepare
from gr2.errors import DataError


def write(path: Path, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def items(made: Imported) -> dict[str | int, dict[str, object]]:
    rows = pq.read_table(made.items_path).to_pylist()
    return {row.pop("item_id"): row for row in rows}


def events(made: Imported) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in pq.read_table(made.interactions_path).to_pylist()]


def review(user: str, item: str, time: int, rating: float = 5.0) -> dict[str, object]:
    return {
        "reviewerID": user,
        "asin": item,
        "reviewerName": "C & C",
        "helpful": [0, 0],
        "reviewText": "Fine.\nVery.",
        "overall": rating,
        "unixReviewTime": time,
    }


NOTHING = {"title": None, "brand": None, "categories": [], "price": None, "description": None}


def test_amazon_2014(tmp_path: Path) -> None:
    log = lines(
        review("A1", "B000000001", 86400), review("A2", "B000000002", 172800), review("A1", "B000000002", 86400)
    )
    meta = (
        "{'asin': 'B000000001', 'title': 'Rock \\'n\\' Roll &amp; Soap', 'price': 7.5, 'imUrl': 'x',"
        " 'salesRank': {'Beauty': 5}, 'brand': 'Acme', 'description': 'A <b>bar</b>\\nof soap.',"
        " 'categories': [['Beauty'], ['Beauty', 'Bath &amp; Body', 'Soaps']]}\n"
        "{'asin': 'B000000009', 'title': 'Not reviewed'}\n"
    )
    made = import_amazon(
        write(tmp_path / "reviews_Beauty_5.json.gz", log),
        write(tmp_path / "meta_Beauty.json.gz", meta),
        tmp_path / "out",
    )
    assert items(made) == {
        "B000000001": {
            "title": "Rock 'n' Roll & Soap",
            "brand": "Acme",
            "categories": ["Beauty", "Bath & Body", "Soaps"],
            "price": 7.5,
            "description": "A bar of soap.",
        },
        "B000000002": NOTHING,
    }
    assert events(made) == [("A1", "B000000001", 86400), ("A2", "B000000002", 172800), ("A1", "B000000002", 86400)]
    assert (made.users, made.items, made.events, made.repeated, made.without_text) == (2, 2, 3, 0, 1)


def test_amazon_2014_reviews_as_python_literals(tmp_path: Path) -> None:
    log = "".join(f"{review('A1', f'B00000000{n}', n + 1)!r}\n" for n in range(3))
    made = import_amazon(write(tmp_path / "reviews.json.gz", log), None, tmp_path / "out")
    assert events(made) == [("A1", f"B00000000{n}", n + 1) for n in range(3)]


def test_amazon_2018(tmp_path: Path) -> None:
    log = lines(*[review("A1", "B000000001", 5)] * 2, review("A1", "B000000001", 9), review("A2", "B000000002", 5, 1.0))
    junk = "var aPageStart = (new Date()).getTime();"
    meta = lines(
        {
            "category": ["Video Games", "PC", "<span class='x'></span>"],
            "description": ["One.", "", "Two &#39;2&#39;."],
            "title": "Game",
            "brand": "",
            "price": "$1,019.99",
            "asin": "B000000001",
        },
        {"category": [], "title": "Later row of the same item", "price": "$1", "asin": "B000000001"},
        {"category": [], "title": junk, "price": ".a-section { x: y }", "asin": "B000000002", "brand": "by Me"},
    )
    made = import_amazon(
        write(tmp_path / "Games.json.gz", log), write(tmp_path / "meta.json.gz", meta), tmp_path / "out"
    )
    assert items(made) == {
        "B000000001": {
            "title": "Game",
            "brand": None,
            "categories": ["Video Games", "PC"],
            "price": 1019.99,
            "description": "One. Two '2'.",
        },
        "B000000002": {**NOTHING, "brand": "by Me"},
    }
    assert (made.events, made.repeated, made.without_text) == (3, 1, 0)


def test_amazon_2023(tmp_path: Path) -> None:
    row = {"rating": 5.0, "title": "Nice", "text": "x", "images": [{"a": 1}], "asin": "B0VARIANT1", "helpful_vote": 0}
    log = lines(
        {**row, "parent_asin": "B0PARENT01", "user_id": "AG2L", "timestamp": 1588687728923},
        {**row, "parent_asin": "B0PARENT02", "user_id": "AG2L", "timestamp": 1588687728924},
    )
    meta = lines(
        {
            "main_category": "All Beauty",
            "title": "Brush",
            "price": None,
            "description": [],
            "store": "Howard",
            "categories": [],
            "details": {"Brand": "Yes To"},
            "parent_asin": "B0PARENT01",
        },
        {"main_category": None, "title": "", "price": "from 14.99", "store": "S", "parent_asin": "B0PARENT02"},
    )  # fmt: skip
    made = import_amazon(write(tmp_path / "All.jsonl", log), write(tmp_path / "meta_All.jsonl", meta), tmp_path / "out")
    assert items(made) == {
        "B0PARENT01": {**NOTHING, "title": "Brush", "brand": "Yes To", "categories": ["All Beauty"]},
        "B0PARENT02": {**NOTHING, "brand": "S", "price": 14.99},
    }
    assert events(made) == [("AG2L", "B0PARENT01", 1588687728.923), ("AG2L", "B0PARENT02", 1588687728.924)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ratings_Beauty.csv", "A39HTATAQ9V7YF,0205616461,5.0,1369699200\nA3JM6GV9MNOF9X,0558925278,3.0,1355443200\n"),
        ("Beauty.csv", "0205616461,A39HTATAQ9V7YF,5.0,1369699200\n0558925278,A3JM6GV9MNOF9X,3.0,1355443200\n"),
        (
            "Beauty.csv.gz",
            "user_id,parent_asin,rating,timestamp\n"
            "A39HTATAQ9V7YF,0205616461,5.0,1369699200000\nA3JM6GV9MNOF9X,0558925278,3.0,1355443200000\n",
        ),
    ],
)
def test_amazon_ratings_of_every_edition(tmp_path: Path, name: str, text: str) -> None:
    made = import_amazon(write(tmp_path / name, text), None, tmp_path / "out")
    assert events(made) == [
        ("A39HTATAQ9V7YF", "0205616461", 1369699200),
        ("A3JM6GV9MNOF9X", "0558925278", 1355443200),
    ]
    liked = import_amazon(tmp_path / name, None, tmp_path / "liked", min_rating=4)
    assert (liked.events, liked.items, liked.below_rating) == (1, 1, 1)


GOOD = lines(review("A1", "B000000001", 1))


@pytest.mark.parametrize(
    ("name", "log", "meta", "complaint"),
    [
        ("r.json", GOOD + "{'reviewerID': \n", None, r"r\.json, row 2: is not a JSON object"),
        ("r.json", lines(review("A1", "", 1)), None, r"r\.json, row 1, column 'item_id': is empty"),
        ("r.json", GOOD + lines({"reviewerID": "A1", "asin": "B2"}), None, "row 2, column 'rating': is missing"),
        ("r.json", lines({"user": 1}), None, "row 1: expected 'reviewerID' or 'user_id' among the keys, found 'user'"),
        ("r.json", "", None, "has no rows"),
        ("r.json", "[1]\n", None, "row 1: expected an object, found list"),
        ("r.json", "x = 1\n", None, "row 1: is neither JSON nor a Python literal"),
        ("r.json", "__import__('os').getcwd()\n", None, "row 1: is neither JSON nor a Python literal"),
        ("r.csv", "A1,B1,5,1\n", None, "cannot tell users from items"),
        ("r.csv", "A1,B000000001,5,1\nA2,B000000001,five,1\n", None, "row 2, column 'rating': must be .*'five'"),
        ("r.csv", "A1,B000000001,5,1\nA2,B000000001,5\n", None, "row 2: has 3 values, the header has 4"),
        ("r.json", GOOD, lines({"asin": "B1"}, {"title": "x"}), r"meta\.json, row 2, column 'asin': must be an item"),
        ("r.json", GOOD, lines({"asin": "B1"}) + "{'asin': \n", r"meta\.json, row 2: is neither JSON nor"),
        ("r.json", GOOD, b"{'asin': '\xff'}\n", r"meta\.json, row 1: is not valid UTF-8"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_located(
    tmp_path: Path, name: str, log: str, meta: str | bytes | None, complaint: str
) -> None:
    reviews = write(tmp_path / name, log)
    described = None if meta is None else write(tmp_path / "meta.json", meta)
    with pytest.raises(DataError, match=complaint):
        import_amazon(reviews, described, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_and_damaged_amazon_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        import_amazon(tmp_path / "none.json", None, tmp_path / "out")
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(GOOD.encode())[:-10])
    with pytest.raises(DataError, match=r"cut\.json\.gz"):
        import_amazon(tmp_path / "cut.json.gz", None, tmp_path / "out")
    with pytest.raises(DataError, match=r"none\.json"):
        import_amazon(write(tmp_path / "good.json", GOOD), tmp_path / "none.json", tmp_path / "out")


def test_no_rating_high_enough_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rating of 6 or more; the highest is 5"):
        import_amazon(write(tmp_path / "r.json", GOOD), None, tmp_path / "out", min_rating=6)


def test_movielens_1m(tmp_path: Path) -> None:
    folder = tmp_path / "ml-1m"
    write(folder / "ratings.dat", "1::2858::5::978300760\n1::6::3::978300761\n2::6::4::978298413\n")
    films = "6::Matrix, The (1999)::Action|Sci-Fi\n2858::Amélie: Le Fabuleux::Comedy\n3::Unseen (1990)::Drama\n"
    write(folder / "movies.dat", films.encode("latin-1"))
    made = import_movielens(folder, tmp_path / "out")
    assert items(made) == {
        2858: {**NOTHING, "title": "Amélie: Le Fabuleux", "categories": ["Comedy"]},
        6: {**NOTHING, "title": "The Matrix (1999)", "categories": ["Action", "Sci-Fi"]},
    }
    assert events(made) == [(1, 2858, 978300760), (1, 6, 978300761), (2, 6, 978298413)]


def test_movielens_csv(tmp_path: Path) -> None:
    folder = tmp_path / "ml-32m"
    write(
        folder / "ratings.csv", "userId,movieId,rating,timestamp\n1,17,4.0,944249077\n1,25,0.5,944250228\n2,99,5.0,9\n"
    )
    write(
        folder / "movies.csv",
        'movieId,title,genres\n17,"American President, The (1995)",Comedy|Drama\n'
        '25,"""Hi"", A (1990)",(no genres listed)\n',
    )
    made = import_movielens(folder, tmp_path / "out")
    assert items(made) == {
        17: {**NOTHING, "title": "The American President (1995)", "categories": ["Comedy", "Drama"]},
        25: {**NOTHING, "title": 'A "Hi" (1990)'},
        99: NOTHING,
    }
    assert (made.users, made.events, made.without_text) == (2, 3, 1)
    liked = import_movielens(folder, tmp_path / "liked", min_rating=4.0)
    assert (liked.events, liked.below_rating) == (2, 1)


CSV = "userId,movieId,rating,timestamp\n"


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, r"expected ratings\.csv .* or ratings\.dat"),
        ({"ratings.dat": "1::2::5::9\n"}, r"movies\.dat: no such file"),
        ({"ratings.dat": "1::2::5::9\n1::3::5\n", "movies.dat": "2::A::B\n"}, r"ratings\.dat, row 2: has 5 values"),
        ({"ratings.dat": "1::2::5::now\n", "movies.dat": "2::A::B\n"}, r"dat, row 1, column 'timestamp': .*'now'"),
        ({"ratings.dat": "1::2::5::9\n", "movies.dat": "2::A::B\nx::A::B\n"}, r"movies\.dat, row 2: expected MovieID"),
        ({"ratings.csv": "userId,movieId,rating\n1,2,3\n"}, r"ratings\.csv, column 'timestamp': required"),
        ({"ratings.csv": CSV + "1,2,3,4\n"}, r"movies\.csv: no such file"),
        ({"ratings.csv": CSV + "1,2,,4\n", "movies.csv": "movieId,title\n2,A\n"}, "row 1, column 'rating': is"),
    ],
)  # fmt: skip
def test_movielens_folders_that_cannot_be_read(tmp_path: Path, files: dict[str, str], complaint: str) -> None:
    for name, text in files.items():
        write(tmp_path / "ml" / name, text)
    with pytest.raises(DataError, match=complaint):
        import_movielens(tmp_path / "ml", tmp_path / "out")


def test_prepare_takes_what_an_import_wrote(tmp_path: Path) -> None:
    log = lines(*(review(f"A{user}", f"B00000000{item}", item) for user in range(5) for item in range(6)))
    meta = lines(*({"asin": f"B00000000{item}", "title": f"T{item}"} for item in range(5)))
    made = import_amazon(write(tmp_path / "r.json", log), write(tmp_path / "m.json", meta), tmp_path / "out")
    dataset, _ = prepare(PrepareConfig(items=str(made.items_path), interactions=str(made.interactions_path)), seed=0)
    assert [dataset.catalog.title[item] for item in dataset.events(0)] == ["T0", "T1", "T2", "T3", "T4", None]

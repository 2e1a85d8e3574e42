"""Public data sets, as their owners distribute them, to items.parquet and interactions.parquet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gr2.catalog import Catalog
from gr2.data.amazon import read_products, read_reviews
from gr2.data.columns import Ids, TableFile
from gr2.data.inputs import write_inputs
from gr2.data.tables import read_csv
from gr2.errors import DataError

__all__ = ["Imported", "import_amazon", "import_movielens"]

MILLISECONDS = 1e11  # a time stamp above this is no second before the year 5138
ARTICLE = re.compile(r"^(.*), (The|A|An|Le|La|Les|Il|Das|Der|Die|El|L')( \(.*)?$")
NO_GENRES = "(no genres listed)"


@dataclass(frozen=True)
class Imported:
    """What an import wrote: two files, how much is in them, and what it left out or could not find."""

    items_path: Path
    interactions_path: Path
    users: int
    items: int
    events: int
    repeated: int  # events dropped because user, item and time repeat an earlier one
    below_rating: int  # events dropped because of `min_rating`
    without_text: int  # items of the log that the metadata does not know; kept, with their ID alone


def import_amazon(reviews: Path, meta: Path | None, out: Path, *, min_rating: float = 0.0) -> Imported:
    """Import Amazon reviews (2014, 2018 or 2023 edition), writing to the folder `out`.

    `reviews` is a reviews or 5-core file (.json.gz, .jsonl, .jsonl.gz, .json) or a ratings-only .csv or .csv.gz; `meta`
    the metadata file of the same edition, if at hand. The catalogue holds the items that were reviewed. Events with a
    rating below `min_rating` are left out. Raises DataError with the file and row of what cannot be read.
    """
    log, counts = _events(read_reviews(Path(reviews)), min_rating)
    ids = log.column("item_id").unique().to_pylist()
    products = {} if meta is None else read_products(Path(meta), set(ids))
    unknown = dict.fromkeys(("title", "brand", "price", "description"), None) | {"categories": []}
    rows: list[dict[str, Any]] = [products.get(item, unknown) for item in ids]
    names = ("title", "brand", "categories", "price", "description")
    catalog = Catalog(ids, *([row[name] for row in rows] for name in names))
    return _write(Path(out), catalog, log, counts, len(ids) - len(products))


def import_movielens(folder: Path, out: Path, *, min_rating: float = 0.0) -> Imported:
    """Import a MovieLens folder, writing to the folder `out`.

    Either `ratings.dat` and `movies.dat` (1M, 10M) or `ratings.csv` and `movies.csv` (20M, 25M, 32M, latest). Genres
    become categories. The catalogue holds the films that were rated. Events with a rating below `min_rating` are left
    out. Raises DataError with the file and row of what cannot be read.
    """
    source = Path(folder)
    if (source / "ratings.dat").is_file():
        # `::` divides the values: for a reader of single `:` there is an empty column between any two.
        header = ("user_id", "_1", "item_id", "_2", "rating", "_3", "timestamp")
        required, numeric = ("user_id", "item_id"), ("rating", "timestamp")
        ratings = read_csv(source / "ratings.dat", required=required, numeric=numeric, delimiter=":", header=header)
        films = _dat_films(source / "movies.dat")
    elif (source / "ratings.csv").is_file():
        ratings = read_csv(
            source / "ratings.csv",
            required=("userId", "movieId", "rating", "timestamp"),
            numeric=("rating", "timestamp"),
        )
        ratings = TableFile(
            ratings.path, ratings.data.rename_columns(["user_id", "item_id", "rating", "timestamp"]), typed=False
        )
        films = _csv_films(source / "movies.csv")
    else:
        raise DataError("expected ratings.csv (20M and later) or ratings.dat (1M, 10M) in the folder", path=source)
    log, counts = _events(ratings, min_rating)
    ids = log.column("item_id").unique().to_pylist()
    known = [films.get(item, (None, [])) for item in ids]
    nothing: list[None] = [None] * len(ids)
    catalog = Catalog(
        ids,
        title=[title for title, _ in known],
        brand=list(nothing),
        categories=[genres for _, genres in known],
        price=list(nothing),
        description=list(nothing),
    )
    return _write(Path(out), catalog, log, counts, sum(item not in films for item in ids))


def _events(file: TableFile, min_rating: float) -> tuple[Any, dict[str, int]]:
    """A table of user_id, item_id, timestamp (seconds), and the numbers of events left out."""
    users, items = (_whole(file, name) for name in ("user_id", "item_id"))
    ratings, times = (_known(file, name) for name in ("rating", "timestamp"))
    times = np.where(times > MILLISECONDS, times / 1000, times)
    liked = ratings >= min_rating
    if not liked.any():
        raise DataError(f"no rating of {min_rating:g} or more; the highest is {ratings.max():g}", path=file.path)
    rows = np.flatnonzero(liked)
    order = rows[np.lexsort((times[rows], items.codes[rows], users.codes[rows]))]
    here, before = order[1:], order[:-1]
    same = (users.codes[here] == users.codes[before]) & (items.codes[here] == items.codes[before])
    repeated = here[same & (times[here] == times[before])]
    rows = np.setdiff1d(rows, repeated, assume_unique=True)
    columns = {
        "user_id": users.values.take(pa.array(users.codes[rows])),
        "item_id": items.values.take(pa.array(items.codes[rows])),
        "timestamp": pa.array(times[rows]),
    }
    return pa.table(columns), {"repeated": len(repeated), "below_rating": int((~liked).sum())}


def _whole(file: TableFile, name: str) -> Ids:
    ids = file.ids(name)
    return ids if ids.kind != "text" else ids.as_kind("int64" if ids.is_integral() else "string")


def _known(file: TableFile, name: str) -> NDArray[np.float64]:
    values = file.numbers(name)
    missing = np.flatnonzero(np.isnan(values))
    if len(missing):
        raise file.error("is missing", int(missing[0]), name)
    return values


def _csv_films(path: Path) -> dict[Any, tuple[str | None, list[str]]]:
    if not path.is_file():
        raise DataError("no such file", path=path)
    file = read_csv(path, required=("movieId", "title"), text=("genres",))
    ids = _whole(file, "movieId")
    genres = file.text("genres") if "genres" in file else pa.nulls(len(ids.codes), pa.string())
    rows = zip(ids.values.take(pa.array(ids.codes)).to_pylist(), file.text("title").to_pylist(), genres, strict=True)
    return {item: (_title(title), _genres(names.as_py())) for item, title, names in rows}


def _dat_films(path: Path) -> dict[Any, tuple[str | None, list[str]]]:
    if not path.is_file():
        raise DataError("no such file", path=path)
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")  # the 1M edition
    films: dict[Any, tuple[str | None, list[str]]] = {}
    for row, line in enumerate((line for line in text.split("\n") if line.strip()), start=1):
        item, *title, genres = line.strip("\r").split("::")
        if not title or not item.isdecimal():
            raise DataError(f"expected MovieID::Title::Genres, got {line!r:.80}", path=path, row=row)
        films[int(item)] = _title("::".join(title)), _genres(genres)
    return films


def _title(title: str | None) -> str | None:
    """`Matrix, The (1999)` as `The Matrix (1999)`."""
    match = ARTICLE.match((title or "").strip())
    if match is None:
        return (title or "").strip() or None
    gap = "" if match[2].endswith("'") else " "
    return f"{match[2]}{gap}{match[1]}{match[3] or ''}"


def _genres(names: str | None) -> list[str]:
    return [name for name in (names or "").strip().split("|") if name and name != NO_GENRES]


def _write(out: Path, catalog: Catalog, log: Any, counts: dict[str, int], without_text: int) -> Imported:
    users = pc.count_distinct(log.column("user_id")).as_py()
    items_path, interactions_path = write_inputs(out, catalog, log)
    return Imported(
        items_path,
        interactions_path,
        users=users,
        items=len(catalog),
        events=log.num_rows,
        without_text=without_text,
        **counts,
    )

"""`gr2 data`: a synthetic shop, and imports of public logs in their owners' formats."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gr2.errors import ConfigError

if TYPE_CHECKING:
    from gr2.data.formats import Imported

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Make or import items.parquet and interactions.parquet.")
imports = typer.Typer(no_args_is_help=True, help="Import a public log in its owner's format.")
app.add_typer(imports, name="import")

Out = Annotated[Path, typer.Option(help="The folder to write to.")]
MinRating = Annotated[float, typer.Option(help="Leave out events with a lower rating.")]


class IdType(StrEnum):
    """The type of item and user IDs."""

    STRING = "string"
    INT64 = "int64"


@app.command()
def synthetic(
    out: Annotated[Path, typer.Argument(help="The folder to write to.")],
    users: Annotated[int, typer.Option(help="How many users.")] = 2000,
    items: Annotated[int, typer.Option(help="How many items, 30 at least.")] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed writes the same bytes.")] = 0,
    id_type: Annotated[IdType, typer.Option(help="The type of the IDs.")] = IdType.STRING,
    clicks: Annotated[bool, typer.Option("--clicks", help="Also write slates with clicks, and the truth.")] = False,
    slate: Annotated[int, typer.Option(help="Candidates of a slate.")] = 10,
    bias: Annotated[float, typer.Option(help="Place k is examined with probability k^-BIAS.")] = 1.0,
    shuffled: Annotated[float, typer.Option(help="Share of slates shown in random order.")] = 0.1,
) -> None:
    """Write a synthetic shop's catalogue and log; with clicks, slates that were shown and what became of them.

    gr2 data synthetic data/shop --users 3000 --items 600
    gr2 data synthetic data/shop --clicks --bias 1.5
    """
    from gr2.data.synthetic import write_synthetic
    from gr2.data.synthetic_clicks import Clicks

    try:
        shown = Clicks(slate=slate, bias=bias, shuffled=shuffled) if clicks else None
        paths = write_synthetic(out, users=users, items=items, seed=seed, id_type=id_type.value, clicks=shown)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    typer.echo("\n".join(map(str, paths)))


@imports.command()
def amazon(
    reviews: Annotated[
        Path, typer.Argument(help="Reviews: .json.gz, .jsonl, .jsonl.gz, .json; or ratings: .csv, .csv.gz.")
    ],
    out: Out,
    meta: Annotated[Path | None, typer.Option(help="The metadata of the same edition: titles, brands, prices.")] = None,
    min_rating: MinRating = 0.0,
) -> None:
    """Import Amazon reviews of the 2014, 2018 or 2023 edition.

    gr2 data import amazon reviews_Beauty_5.json.gz --meta meta_Beauty.json.gz --out data/beauty
    """
    from gr2.data.formats import import_amazon

    _report(import_amazon(reviews, meta, out, min_rating=min_rating))


@imports.command()
def movielens(
    folder: Annotated[Path, typer.Argument(help="The unpacked folder, with ratings.dat or ratings.csv.")],
    out: Out,
    min_rating: MinRating = 0.0,
) -> None:
    """Import MovieLens 1M, 10M, 20M, 25M, 32M or latest.

    gr2 data import movielens ml-1m --out data/ml-1m --min-rating 4
    """
    from gr2.data.formats import import_movielens

    _report(import_movielens(folder, out, min_rating=min_rating))


def _report(imported: Imported) -> None:
    typer.echo(f"{imported.items_path}\n{imported.interactions_path}")
    left_out = f"{imported.repeated:,} repeated, {imported.below_rating:,} below the rating"
    typer.echo(
        f"{imported.users:,} users, {imported.items:,} items ({imported.without_text:,} without metadata), "
        f"{imported.events:,} events (left out: {left_out})",
        err=True,
    )

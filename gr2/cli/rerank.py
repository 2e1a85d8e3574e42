"""`gr2 rerank`: one request from JSON, answered by a server or in process, as a table or as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gr2.cli.connection import CaFile, CertFile, KeyFile, Token, connect
from gr2.cli.request import Request, parse_request
from gr2.errors import ConfigError, DataError

if TYPE_CHECKING:
    from gr2.bundle import Bundle
    from gr2.catalog import ItemId
    from gr2.client import Client
    from gr2.serving.ranking import Ranking

__all__ = ["register"]

LONGEST_TIMEOUT = 3600


def register(app: typer.Typer) -> None:
    """Add `rerank` to the application."""
    app.command("rerank", rich_help_panel="Serve")(rerank)


def rerank(
    request: Annotated[
        Path | None, typer.Argument(metavar="REQUEST.json", help="The request; standard input without it.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ask the server at HOST:PORT.")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="A bundle: answers in process if there is no --address, and gives the titles.")
    ] = None,
    items: Annotated[Path | None, typer.Option(help="An items.parquet that gives the titles.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the server.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")] = False,
    ca: CaFile = "",
    cert: CertFile = "",
    key: KeyFile = "",
    token: Token = "",
) -> None:
    """Re-rank one slate.

    The request is a JSON object with these keys; only `candidates` is needed:

        candidates   item IDs in the pre-ranker's order
        history      item IDs, oldest first
        scores       one a candidate, higher is better
        features     one row of numbers a candidate
        top_n        how many to list

    Ask in process or ask a server:

        echo '{"history": ["a"], "candidates": ["b", "c"], "scores": [2, 1]}' > request.json
        gr2 rerank request.json --bundle runs/shop/export
        gr2 rerank --address 127.0.0.1:50051 --json < request.json
    """
    if address is None and bundle is None:
        raise ConfigError("nobody to ask: give --address HOST:PORT of a running server, or --bundle DIR")
    if not 0 < timeout <= LONGEST_TIMEOUT:
        raise ConfigError(f"--timeout must be above 0 and at most {LONGEST_TIMEOUT} seconds, got {timeout:g}")
    source = str(request or "standard input")
    try:
        text = request.read_text(encoding="utf-8") if request else sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the request: {error}", path=source) from error
    asked = parse_request(text, source)
    loaded = _load(bundle)
    titles = _titles(items or (loaded.path / "items.parquet" if loaded else None))
    client = connect(address, ca, cert, key, token) if address is not None else None
    ranking = _ask(asked, client, loaded, timeout)
    if as_json:
        print(json.dumps(_to_json(ranking, titles), ensure_ascii=False, indent=2))
        return
    from rich.console import Console

    from gr2.report.tables import ranking_table

    Console().print(ranking_table(ranking, titles))


def _load(path: Path | None) -> Bundle | None:
    if path is None:
        return None
    from gr2.bundle import Bundle

    return Bundle.load(path)


def _ask(request: Request, client: Client | None, bundle: Bundle | None, timeout: float) -> Ranking:
    options: dict[str, Any] = {"scores": request.scores, "features": request.features, "top_n": request.top_n}
    if client is not None:
        with client:
            return client.rerank(request.history, request.candidates, timeout=timeout, **options)
    assert bundle is not None
    from gr2.serving.engine import Engine

    return Engine(bundle).rerank(request.history, request.candidates, **options)


def _titles(path: Path | None) -> dict[ItemId, str]:
    if path is None:
        return {}
    from gr2.catalog import Catalog

    catalog = Catalog.load(path)
    return {item: title for item, title in zip(catalog.ids, catalog.title, strict=True) if title}


def _to_json(ranking: Ranking, titles: dict[ItemId, str]) -> dict[str, Any]:
    answer = dataclasses.asdict(ranking)
    answer["ranking"] = [
        {**item, "status": item["status"].name.lower()}
        | ({"title": titles[item["item_id"]]} if item["item_id"] in titles else {})
        for item in answer.pop("items")
    ]
    return answer

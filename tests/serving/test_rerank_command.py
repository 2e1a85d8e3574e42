"""`gr2 rerank` with input that nobody meant well: clear errors, and nothing for the terminal to obey."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gr2.bundle import Bundle, write_bundle
from gr2.catalog import Catalog
from gr2.cli.app import app
from gr2.cli.request import parse_request
from gr2.decoding import write_codebook
from gr2.errors import BundleError, ConfigError, DataError

MakeBundle = Callable[..., Path]


def rerank(request: str, *arguments: str) -> str:
    """What the command prints; raises what it raises."""
    answer = CliRunner().invoke(app, ["rerank", *arguments], input=request, catch_exceptions=False)
    assert answer.exit_code == 0
    return answer.output


def test_deeply_nested_request_is_no_valid_json() -> None:
    with pytest.raises(DataError, match="standard input: not valid JSON"):
        parse_request('{"candidates": ' + "[" * 10**6, "standard input")


@pytest.mark.parametrize("timeout", ["inf", "nan", "-1", "0", "1e9"])
def test_timeout_is_bounded(timeout: str) -> None:
    with pytest.raises(ConfigError, match="--timeout must be above 0 and at most 3600 seconds, got"):
        rerank("{}", "--address", "127.0.0.1:1", "--timeout", timeout)


def test_folder_that_is_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"absent: not a bundle: no manifest\.json"):
        rerank('{"candidates": [1007]}', "--bundle", str(tmp_path / "absent"))


def test_control_characters_never_reach_the_terminal(make_bundle: MakeBundle, tmp_path: Path) -> None:
    source = Bundle.load(make_bundle("string"))
    ids, blank = ["a\x1b]0;owned\x07", "b\x9b31m"], [None, None]
    codes, _ = source.codebook().lookup(source.catalog().ids[:2])
    write_codebook(tmp_path / "codebook.bin", ids, codes, source.manifest.model.level_size)
    write_bundle(
        tmp_path / "bundle",
        graph=source.graph,
        codebook=tmp_path / "codebook.bin",
        catalog=Catalog(ids, ["\x1b[2JTitle\r\n", None], blank, [[], []], blank, blank),
        model=source.manifest.model,
        features=source.manifest.features,
    )
    output = rerank(json.dumps({"candidates": ids}), "--bundle", str(tmp_path / "bundle"))
    assert "Title" in output
    assert "owned" in output
    assert not set(output) & {"\x1b", "\x07", "\x9b", "\r"}

"""The command line as a user meets it: real processes, their exit codes and what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gr2.bundle import Bundle
from gr2.catalog import Catalog
from gr2.cli.app import app, main
from gr2.cli.request import parse_request
from gr2.demo import served
from gr2.errors import ConfigError, DataError
from gr2.pipeline import STAGES
from gr2.version import __version__

# An interpreter in which the packages of the training half cannot be found, as after a base install.
BASE_INSTALL = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('torch', 'transformers', 'sentence_transformers', 'onnx', 'onnxscript', 'scipy'):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from gr2.cli import main
main()
"""


def gr2(*arguments: str, code: str | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else ["-m", "gr2.cli"]
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, *start, *arguments],
        capture_output=True, text=True, check=False, cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_version() -> None:
    assert gr2("--version").stdout == f"gr2 {__version__}\n"


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, typer\n"
        "from gr2.cli.app import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'onnxruntime', 'grpc'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    answer = gr2(code=code)
    assert answer.returncode == 0, answer.stderr
    for command in ("run", *STAGES, "serve", "rerank", "demo", "data", "report"):
        assert command in answer.stdout


@pytest.mark.parametrize(
    "command", [["run"], ["distill"], ["serve"], ["rerank"], ["demo"], ["data", "synthetic"], ["report", "tokenizer"]]
)
def test_help_of_each_command_has_an_example(command: list[str]) -> None:
    answer = CliRunner().invoke(app, [*command, "--help"], prog_name="gr2")
    assert answer.exit_code == 0
    assert f" gr2 {' '.join(command)} " in answer.output


def test_base_install_prepares_and_says_what_training_needs(tmp_path: Path) -> None:
    assert (
        gr2("data", "synthetic", "data", "--users", "60", "--items", "40", code=BASE_INSTALL, cwd=tmp_path).returncode
        == 0
    )
    (tmp_path / "shop.toml").write_text(
        '[prepare]\nitems = "data/items.parquet"\ninteractions = "data/interactions.parquet"\ncore = 2\n'
    )
    assert gr2("prepare", "shop.toml", code=BASE_INSTALL, cwd=tmp_path).returncode == 0
    assert (tmp_path / "runs" / "shop" / "prepare" / "artifact.json").is_file()
    answer = gr2("run", "shop.toml", code=BASE_INSTALL, cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr == (
        "gr2: error: the stage 'prerank' needs the 'train' extra (No module named 'torch'); "
        "install it with: pip install 'gr2[train]'\n"
    )


def test_an_error_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    answer = gr2("run", "none.toml", cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr == "gr2: error: none.toml: cannot read the configuration: No such file or directory\n"
    assert answer.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "shop.toml", "--set", "run.out=/proc/none/run"], "/proc/none"),
        (["data", "synthetic", "shop.toml"], "shop.toml: File exists"),
        (["run", "shop.toml", "--set", "run.out=shop.toml"], "[run] out: shop.toml is a file; give a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line_and_exit_code_2(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "shop.toml").write_text('[prepare]\ninteractions = "none.parquet"\n')
    answer = gr2(*arguments, cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"gr2: error: {message}")
    assert answer.stderr.count("\n") == 1


def test_a_full_disk_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    limited = (
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\nfrom gr2.cli import main\nmain()\n"
    )
    answer = gr2("data", "synthetic", "shop", code=limited, cwd=tmp_path)
    assert answer.returncode == 2
    assert "File too large" in answer.stderr
    assert (answer.stderr.startswith("gr2: error: "), answer.stderr.count("\n")) == (True, 1)
    assert list((tmp_path / "shop").iterdir()) == []


def test_wrong_usage_is_exit_code_2(tmp_path: Path) -> None:
    answer = gr2("serve", cwd=tmp_path)
    assert answer.returncode == 2
    assert "--bundle" in answer.stderr


def test_synthetic_data_refuses_what_it_cannot_make(tmp_path: Path) -> None:
    answer = gr2("data", "synthetic", "data", "--items", "2", cwd=tmp_path)
    assert answer.returncode == 2
    assert "needs at least 1 user and 30 items" in answer.stderr


def test_movielens_import_writes_the_two_files(tmp_path: Path) -> None:
    source = tmp_path / "ml"
    source.mkdir()
    (source / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,7,4.0,100\n1,8,2.0,200\n2,7,5.0,300\n")
    (source / "movies.csv").write_text("movieId,title,genres\n7,Heat (1995),Crime|Drama\n8,Sabrina (1995),Comedy\n")
    answer = gr2("data", "import", "movielens", "ml", "--out", "data", "--min-rating", "3", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "data/items.parquet\ndata/interactions.parquet\n"
    assert "2 users, 1 items (0 without metadata), 2 events" in answer.stderr


def test_rerank_without_anybody_to_ask() -> None:
    answer = gr2("rerank")
    assert answer.returncode == 2
    assert "give --address HOST:PORT of a running server, or --bundle DIR" in answer.stderr


def test_rerank_of_a_server_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text('{"candidates": ["a"]}')
    answer = gr2("rerank", "request.json", "--address", "127.0.0.1:1", cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.startswith("gr2: error: 127.0.0.1:1: cannot be reached")
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("{", DataError, "standard input: not valid JSON"),
        ("[]", DataError, "expected a JSON object, got list"),
        ('{"candidate": [1]}', ConfigError, "has no key 'candidate'; did you mean 'candidates'"),
        ('{"history": [1]}', ConfigError, "needs the key 'candidates'"),
        ('{"candidates": [1.5]}', ConfigError, "candidates must be"),
        ('{"candidates": [1], "scores": ["high"]}', ConfigError, "scores must be"),
        ('{"candidates": [1], "top_n": true}', ConfigError, "top_n must be int, got True"),
    ],
)
def test_a_bad_request_says_what_is_wrong(text: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message.replace("[", r"\[")):
        parse_request(text, "standard input")


def test_a_request_keeps_its_values() -> None:
    request = parse_request('{"candidates": ["b", "c"], "scores": [2, 1.5], "features": [[1], [2]], "top_n": 1}', "x")
    assert (request.candidates, request.scores, request.features) == (("b", "c"), (2.0, 1.5), ((1.0,), (2.0,)))
    assert (request.history, request.top_n) == ((), 1)


def test_titles_are_those_of_the_items_file(tmp_path: Path) -> None:
    from gr2.cli.rerank import _titles

    path = tmp_path / "items.parquet"
    Catalog(["a", "b"], ["First", None], [None] * 2, [[], []], [None] * 2, [None] * 2).save(path)
    assert _titles(path) == {"a": "First"}


def test_rerank_answers_in_process_with_titles(tiny_run: Path, tmp_path: Path) -> None:
    catalog = Catalog.load(tiny_run / "export" / "items.parquet")
    request = {"history": catalog.ids[:2], "candidates": [*catalog.ids[2:5], "nobody sells this"], "top_n": 4}
    (tmp_path / "request.json").write_text(json.dumps(request))
    answer = gr2("rerank", "request.json", "--bundle", str(tiny_run / "export"), "--json", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    record = json.loads(answer.stdout)
    assert [item["status"] for item in record["ranking"]] == ["scored"] * 3 + ["unknown_item"]
    titles = dict(zip(catalog.ids, catalog.title, strict=True))
    assert all(item["title"] == titles[item["item_id"]] for item in record["ranking"][:3])
    assert record["bundle_version"] == Bundle.load(tiny_run / "export").version
    table = gr2("rerank", "request.json", "--bundle", str(tiny_run / "export"), cwd=tmp_path)
    assert "unknown item" in table.stdout
    assert str(titles[record["ranking"][0]["item_id"]])[:20] in table.stdout


def test_rerank_asks_a_running_server(tiny_run: Path, tmp_path: Path) -> None:
    ids = Catalog.load(tiny_run / "export" / "items.parquet").ids
    (tmp_path / "request.json").write_text(json.dumps({"candidates": ids[:5], "scores": [5, 4, 3, 2, 1]}))
    local = gr2("rerank", "request.json", "--bundle", str(tiny_run / "export"), "--json", cwd=tmp_path)
    with served(tiny_run / "export") as address:
        remote = gr2("rerank", "request.json", "--address", address, "--json", cwd=tmp_path)
    orders = [[item["item_id"] for item in json.loads(each.stdout)["ranking"]] for each in (local, remote)]
    assert orders[0] == orders[1]


def test_rerank_without_candidates_says_so(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text('{"candidates": []}')
    answer = gr2("rerank", "request.json", "--bundle", str(tiny_run / "export"), cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (2, "gr2: error: candidates: at least one is needed, got none\n")


def test_a_disk_that_fills_up_under_a_tokenizer_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    monkeypatch.setattr("gr2.cli.app.app", lambda **_: tokenizer.save("/dev/full"))
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "gr2: error: No space left on device (os error 28)\n"

"""The job on Ray: `gr2 encode`, its errors, and what is left of one that was killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from gr2.artifact import Artifact, open_stage
from gr2.catalog import Catalog
from gr2.cli.app import app
from gr2.errors import ConfigError, DataError, Gr2Error, MissingExtraError
from gr2.tokenizer.bulk.cluster import RayPool, ray_pool
from gr2.tokenizer.bulk.encode import Work, encode_items
from gr2.tokenizer.tokenize import TokenizeConfig, run

pytest.importorskip("ray.data")
# Ray's own: its settings warn of themselves.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.data\.context")
FILES, ROWS = 40, 250


@pytest.fixture(scope="module")
def pool() -> Iterator[RayPool]:
    with ray_pool(2) as workers:
        yield workers


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose codes were learnt from 600 items with vectors, and a folder `items` with 10,000 in 40 files."""
    folder = tmp_path_factory.mktemp("shop")
    rows = np.random.default_rng(0).normal(size=(600 + FILES * ROWS, 8)).astype(np.float32)
    table = pa.table({"item_id": np.arange(len(rows)), "vector": pa.array(list(rows), pa.list_(pa.float32()))})
    pq.write_table(table.slice(0, 600), folder / "own.parquet")
    (folder / "items").mkdir()
    for number in range(FILES):
        pq.write_table(table.slice(600 + number * ROWS, ROWS), folder / "items" / f"{number}.parquet")
    blank: list[Any] = [None] * 600
    with open_stage(folder / "prepare", "prepare", TokenizeConfig(), {}, 0) as work:
        Catalog(list(range(600)), blank, blank, [[]] * 600, blank, blank).save(work.path / "items.parquet")
    config = f'[run]\nout = "{folder}"\n[tokenize]\nvectors = "{folder}/own.parquet"\nlevels = 4\nlevel_size = 16\n'
    (folder / "run.toml").write_text(config)
    learnt = TokenizeConfig(vectors=str(folder / "own.parquet"), levels=4, level_size=16)
    run(learnt, {"prepare": Artifact.load(folder / "prepare")}, folder / "tokenize", seed=0)
    return folder


def doubling() -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A function that workers take as it is: they cannot import this file."""

    def double(task: Mapping[str, Any]) -> dict[str, Any]:
        if task["number"] == 13:
            raise DataError("wrong", path="a.parquet", row=13)
        if task["number"] == 14:
            (Path("/nowhere") / "file").write_text("")
        return {"number": 2 * task["number"]}

    return double


double = doubling()


def numbers(pool: RayPool, *wanted: int) -> list[int]:
    return sorted(answer["number"] for answer in pool.run(double, [{"number": number} for number in wanted]))


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingExtraError, match=r"encoding with Ray needs the 'scale' extra .*'gr2\[scale\]'"),
        ray_pool(),
    ):
        pass


def test_nobody_at_the_address_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    refused = pytest.raises(ConfigError, match=rf"no Ray cluster at '127\.0\.0\.1:{port}': .*refused")
    with refused, ray_pool(address=f"127.0.0.1:{port}"):
        pass


def test_answers_are_those_of_the_tasks(pool: RayPool) -> None:
    assert numbers(pool, 1) == [2]
    assert numbers(pool, *range(10)) == list(range(0, 20, 2))


def test_errors_of_a_worker_are_raised_as_they_are_without_a_traceback_of_ray(pool: RayPool) -> None:
    with pytest.raises(DataError) as caught:
        numbers(pool, 1, 13, 2)
    assert str(caught.value) == "a.parquet, row 13: wrong"
    with pytest.raises(Gr2Error, match=r"^/nowhere/file: No such file or directory$"):
        numbers(pool, 14)
    assert numbers(pool, 3) == [6]


def test_a_connection_that_is_there_is_used_and_kept(pool: RayPool) -> None:
    import ray

    with ray_pool(1) as other:
        assert other.workers == 1
        assert numbers(other, 5) == [10]
    assert ray.is_initialized()


def test_a_wrong_item_that_a_worker_finds_is_named(shop: Path, pool: RayPool) -> None:
    path = shop / "wrong.parquet"
    pq.write_table(pa.table({"item_id": [90_001, 90_002], "vector": [[1.0] * 8, [1.0, float("nan")] * 4]}), path)
    answer = CliRunner().invoke(app, ["encode", str(shop / "run.toml"), str(path), "--out", str(shop / "refused")])
    assert isinstance(answer.exception, DataError)
    assert str(answer.exception) == f"{path}, row 2, column 'vector': NaN, infinite or too large value"


def test_a_gpu_that_is_not_there_is_missed(pool: RayPool) -> None:
    import ray

    if not ray.cluster_resources().get("GPU"):
        with pytest.raises(ConfigError, match=r"Ray sees none; --set tokenize\.device=cpu"), ray_pool(gpu=True):
            pass


class Here:
    """The tasks one by one in this process."""

    def run(self, work: Work, tasks: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        return map(work, tasks)


def start(run: Path, items: Path, *options: str) -> subprocess.Popen[str]:
    arguments = [str(run / "run.toml"), str(items), "--workers", "2", "--set", f"run.out={run}", *options]
    command = [sys.executable, "-m", "gr2.cli", "encode", *arguments]
    return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, start_new_session=True)


def units(run: Path) -> list[Path]:
    """The units that a job has written."""
    return list((run / "encode.partial" / "checkpoints").glob("unit-*"))


def end(process: subprocess.Popen[str], number: signal.Signals, run: Path) -> tuple[int, str]:
    """Signal the job's whole process group once it has written a unit; its exit code and what it said."""
    deadline = time.monotonic() + 60.0
    while not units(run) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, number)
    _, said = process.communicate()
    return process.returncode, said


def test_an_interrupted_and_a_killed_job_go_on_to_the_same_bytes(shop: Path, tmp_path: Path, pool: RayPool) -> None:
    import ray

    # One has a cluster of its own, the other is a guest.
    interrupted, killed = tmp_path / "interrupted", tmp_path / "killed"
    address = ray.get_runtime_context().gcs_address
    for each in (interrupted, killed):
        shutil.copytree(shop, each, ignore=shutil.ignore_patterns("items"))
    processes = start(interrupted, shop / "items"), start(killed, shop / "items", "--address", address)
    with ThreadPoolExecutor(1) as beside:
        other = beside.submit(end, processes[1], signal.SIGKILL, killed)
        code, said = end(processes[0], signal.SIGINT, interrupted)
        assert other.result()[0] == -signal.SIGKILL
    assert code == 130
    assert said.splitlines()[-1] == "encode: interrupted: what was done is kept; the same command goes on from there"
    inputs = {name: Artifact.load(shop / name) for name in ("prepare", "tokenize")}
    calm = encode_items(inputs, [shop / "items"], tmp_path / "calm", workers=nullcontext(Here()))
    for each in (interrupted, killed):
        assert 0 < len(units(each)) < FILES
        command = ["encode", str(each / "run.toml"), str(shop / "items"), "--set", f"run.out={each}"]
        answer = CliRunner().invoke(app, command)
        assert answer.exit_code == 0, answer.output
        assert "10,000 items added, 10,600 in all, 100.00% with an ID of their own" in answer.stderr
        assert Artifact.load(each / "encode", verify=True).digest == calm.digest

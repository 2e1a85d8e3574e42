"""Real processes, killed and stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gr2.client import Client
from gr2.errors import ConfigError
from gr2.serving.config import ServeConfig
from gr2.serving.processes import next_delay, serve_processes

MakeBundle = Callable[..., Path]
KNOWN = [1000 + 7 * item for item in range(300)]


class Parent:
    """`gr2 serve --processes 2` with its two ready lines read."""

    def __init__(self, bundle: Path) -> None:
        command = [sys.executable, "-m", "gr2.cli", "serve", "--bundle", str(bundle), "--port", "0", "--processes", "2"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addresses = sorted(self.ready() for _ in range(2))

    def ready(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        return str(json.loads(line)["address"])

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def parent(make_bundle: MakeBundle) -> Iterator[Parent]:
    parent = Parent(make_bundle())
    yield parent
    if parent.process.poll() is None:
        parent.process.terminate()
    parent.process.communicate(timeout=30)


def gone(pid: int) -> bool:
    """Whether the process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def mapped(pid: int, path: Path) -> bool:
    return any(line.endswith(str(path)) for line in Path(f"/proc/{pid}/maps").read_text().splitlines())


def test_killed_process_is_started_again_on_its_port_and_sigterm_ends_all(
    parent: Parent, make_bundle: MakeBundle
) -> None:
    children = parent.children()
    assert len(children) == 2
    assert all(mapped(child, make_bundle() / "codebook.bin") for child in children)
    os.kill(children[0], signal.SIGKILL)
    again = parent.ready()
    assert again in parent.addresses
    for address in parent.addresses:
        with Client(address) as client:
            assert len(client.rerank([], KNOWN[:5], timeout=20).items) == 5
    assert set(parent.children()) - {children[1]} != {children[0]}
    parent.process.send_signal(signal.SIGTERM)
    _, errors = parent.process.communicate(timeout=30)
    assert parent.process.returncode == 0
    assert f"process {children[0]} of port" in errors
    assert "ended with -9; started again in 0.1 s" in errors


def test_callers_notice_nothing_of_a_process_that_is_killed(parent: Parent) -> None:
    over = threading.Event()

    def ask(client: Client) -> int:
        answers = 0
        while not over.is_set():
            answers += len(client.rerank(KNOWN[:5], KNOWN[5:15], timeout=20).items) == 10
        return answers

    with Client(f"ipv4:{','.join(parent.addresses)}", balancing="round_robin") as client, ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, client) for _ in range(4)]
        for number in (signal.SIGKILL, signal.SIGTERM):
            os.kill(parent.children()[0], number)
            parent.ready()
        over.set()
        assert all(each.result() > 0 for each in asking)


def test_children_end_when_their_parent_is_killed(parent: Parent) -> None:
    children = parent.children()
    parent.process.kill()
    wait_until(lambda: all(gone(child) for child in children))


def test_process_that_refuses_its_bundle_ends_all_with_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gr2.cli", "serve", "--bundle", str(tmp_path), "--port", "0", "--processes", "2"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert "not a bundle" in result.stderr
    assert "cannot serve" in result.stderr


def test_delay_doubles_while_a_process_keeps_dying() -> None:
    delays = [0.0]
    for _ in range(12):
        delays.append(next_delay(delays[-1], lived=1.0))
    assert delays[1:5] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == 30.0
    assert next_delay(30.0, lived=61.0) == 0.1


@pytest.mark.parametrize(("port", "processes", "message"), [(0, 0, "1..256, got 0"), (65535, 2, "leaves no 2 ports")])
def test_impossible_number_of_processes_is_a_clear_error(
    tmp_path: Path, port: int, processes: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        serve_processes(tmp_path, ServeConfig(port=port), processes)

"""Ctrl-C while packages load: it waits until they have, and then ends the command as it does anywhere else."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gr2.interrupts import interrupts_wait

# Interrupts the process when torch is looked for, in the middle of an import.
INTERRUPTED = """
import importlib.abc, signal, sys
class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)
            print('the import went on', file=sys.stderr)
sys.meta_path.insert(0, Interrupt())
from gr2.cli import main
main()
"""


def test_an_interrupt_waits_for_the_end_of_the_block() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), interrupts_wait():
        signal.raise_signal(signal.SIGINT)
        done = True
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_interrupt_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_wait():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_may_use_it() -> None:
    def use() -> None:
        with interrupts_wait():
            done.append(True)

    done: list[bool] = []
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert done == [True]


@pytest.mark.parametrize("module", ["typer", "torch"])
def test_ctrl_c_in_the_middle_of_an_import_is_exit_code_130(tmp_path: Path, module: str) -> None:
    (tmp_path / "shop.toml").write_text('[prepare]\ninteractions = "none.parquet"\n')
    answer = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(module=module), "run", "shop.toml"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 130, answer.stderr
    assert answer.stderr.startswith("the import went on\n")
    assert "Traceback" not in answer.stderr

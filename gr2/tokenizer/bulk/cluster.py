"""Workers of a Ray cluster: one of this machine that lives as long as the job, or one that is there already."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir, contextmanager
from typing import Any

from gr2 import errors
from gr2.errors import ConfigError, Gr2Error, MissingExtraError
from gr2.interrupts import interrupts_wait
from gr2.tokenizer.bulk.encode import Work
from gr2.tokenizer.bulk.own_cluster import start

__all__ = ["RayPool", "ray_pool"]

REACH_SECONDS = 10.0
# One core a worker: their number is what divides the machine.
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
OPTIONS = {"log_to_driver": False, "configure_logging": False}
QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}


class RayPool:
    """Ray Data over lists of tasks, `workers` at once; `gpu` gives each of them a GPU."""

    def __init__(self, workers: int, *, gpu: bool = False) -> None:
        self.workers, self._gpu = workers, gpu

    def run(self, work: Work, tasks: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """The answers of `work` to the tasks, JSON values both, as they come.

        Raises what gr2 raises on purpose in a worker, and Gr2Error if Ray loses one.
        """
        import ray
        import ray.data

        rows = [{"task": json.dumps(task)} for task in tasks]
        # Tasks and not actors: Ray keeps their processes for the next list, and with them what they have loaded.
        answers = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _task(work),
            compute=ray.data.TaskPoolStrategy(size=min(self.workers, len(rows))),
            num_cpus=1,
            num_gpus=1 if self._gpu else None,
        )
        try:
            for row in answers.iter_rows():
                yield _answer(json.loads(row["answer"]))
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            raise Gr2Error(f"Ray lost its workers: {str(error).strip().partition(chr(10))[0]}") from error


def _task(work: Work) -> Callable[[Mapping[str, Any]], dict[str, str]]:
    """What Ray calls with a row: it carries errors that a person can mend to the driver as text."""

    def answer(row: Mapping[str, Any]) -> dict[str, str]:
        try:
            return {"answer": json.dumps(work(json.loads(row["task"])))}
        except Gr2Error as error:
            failure = (type(error).__name__, str(error))
        except OSError as error:
            failure = ("Gr2Error", f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return {"answer": json.dumps({"failure": failure})}

    return answer


def _answer(answer: dict[str, Any]) -> dict[str, Any]:
    if "failure" in answer:
        name, message = answer["failure"]
        kind = getattr(errors, name) if name in {"ArtifactError", "ConfigError", "DataError"} else Gr2Error
        raise kind(message)
    return answer


@contextmanager
def ray_pool(workers: int | None = None, *, address: str | None = None, gpu: bool = False) -> Iterator[RayPool]:
    """Workers, by default one for each core of this machine, or of the cluster at `address`.

    A cluster of this machine's own is started and, whatever happens, stopped again; in a program that has already
    connected to Ray, that connection is used and kept. Raises ConfigError if there is no such cluster or it lacks what
    `gpu` asks for, Gr2Error if Ray does not start on this machine, MissingExtraError without Ray.
    """
    try:
        with interrupts_wait():
            import ray
            import ray.data
    except ImportError as error:
        raise MissingExtraError("encoding with Ray", "scale", error) from error
    own = not ray.is_initialized()
    with _quiet(ray), ExitStack() as folders:
        try:
            # Ray lets workers import from the current folder first, where the sources of another gr2 may lie.
            if own:
                with interrupts_wait(), chdir("/"):
                    if address is None:
                        start(ray, workers or len(os.sched_getaffinity(0)), folders, **OPTIONS)
                    else:
                        _connect(ray, address)
            yield RayPool(_size(ray, workers, gpu), gpu=gpu)
        finally:
            if own:
                with interrupts_wait():
                    ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    try:
        _reach(address)
        ray.init(address=address, runtime_env={"env_vars": THREADS}, **OPTIONS)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Ray cluster at {address!r}: {str(error).partition(chr(10))[0]}") from error


def _reach(address: str) -> None:
    """Raise OSError if nobody listens at HOST:PORT: Ray itself would go on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        with socket.create_connection((host, int(port)), timeout=REACH_SECONDS):
            pass


def _size(ray: Any, workers: int | None, gpu: bool) -> int:
    """How many workers there will be."""
    resources = ray.cluster_resources()
    cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if not cores:
        raise ConfigError("the Ray cluster offers no CPU")
    if gpu and not gpus:
        raise ConfigError("the text encoder is to run on a GPU, but Ray sees none; --set tokenize.device=cpu")
    return min(workers or cores, cores, gpus if gpu else cores)


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Without Ray's own bars, notes and statistics, and with one thread a worker."""
    context = ray.data.DataContext.get_current()
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    before = [logger.level for logger in loggers]
    shown = context.enable_progress_bars, context.print_on_execution_start
    variables = {name: os.environ.get(name) for name in (*THREADS, *QUIET)}
    os.environ.update(THREADS | QUIET)
    context.enable_progress_bars = context.print_on_execution_start = False
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = shown
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

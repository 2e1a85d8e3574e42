"""Every figure that needs a GPU, within eight minutes of one: `python -m benchmarks.kernels.lent --out FOLDER`.

For a GPU that is there for a while only, on a machine that may reach no network. It says what the machine lacks, builds
the extension, and runs each benchmark in a process of its own while there is time for it. Each stores its record in the
folder part by part, beside what it has said, so that what was measured is there even if the machine is taken away. One
that fails or is short does not keep the next from running. With `--dry` the benchmarks run without a GPU: a check of
all of them before one is lent.

The machine brings a C++20 compiler, CMake, Ninja, pybind11, torch for CUDA with Triton, and for the engine onnx,
pyarrow, rich, safetensors and scipy. What it lacks of these, and onnxruntime-gpu, may lie as wheels in a folder,
`--wheels`. A copy of the tracked files is enough, with GR2_COMMIT set to what it is a copy of.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.kernels import needs
from benchmarks.results import ROOT

__all__ = ["main"]

SECONDS = 470.0


@dataclass(frozen=True)
class Step:
    """A command, what it changes of the environment, and the seconds that it needs at least."""

    name: str
    command: list[str]
    least: float
    environment: Mapping[str, str] = field(default_factory=dict)


def benchmarks(out: Path, requests: int) -> list[Step]:
    """The checks and the kernels' figures first."""
    kernels, serving = ([sys.executable, "-m", f"benchmarks.kernels.{name}"] for name in ("gpu", "serving"))
    return [
        Step("kernels", [*kernels, "--out", str(out)], 60),
        Step("serving", [*serving, "--out", str(out), "--requests", str(requests)], 60),
    ]


def dry(steps: list[Step]) -> list[Step]:
    """The same without a GPU: the kernels in Triton's interpreter, the engine on the CPU."""
    interpreted = {"kernels": {"TRITON_INTERPRET": "1"}}
    return [
        replace(step, command=[*step.command, "--dry"], environment=interpreted.get(step.name, {})) for step in steps
    ]


def build() -> list[Step]:
    """The extension."""
    import pybind11

    folder = ROOT / "build" / "dev"
    configure = ["cmake", "--preset", "dev", "-DGR2_BUILD_TESTS=OFF", "-DGR2_WERROR=OFF"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    return [
        Step("configure", configure, 5),
        Step("build", ["cmake", "--build", str(folder), "-j", str(len(os.sched_getaffinity(0)))], 20),
    ]


def run(step: Step, out: Path, seconds: float) -> int:
    """The exit code of a step, whose last lines are printed if it is not 0; all it says is in the folder."""
    log = out / f"{step.name}.log"
    with log.open("w") as file:
        try:
            code = subprocess.run(
                step.command,
                cwd=ROOT,
                env={**os.environ, **step.environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
    if code:
        print(log.read_text()[-3000:], flush=True)
    return code


def use_wheels(folder: Path, site: Path) -> None:
    """Unpack the folder's wheels to `site`, from where this process and those that it starts import them first."""
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        sys.exit(f"{folder} holds no wheels")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    sys.path.insert(0, str(site))
    _prepend("PYTHONPATH", [str(site)])
    # CUDA's libraries as pip installs them, which onnxruntime-gpu asks the loader for.
    _prepend("LD_LIBRARY_PATH", [str(lib) for path in sys.path for lib in Path(path).glob("nvidia/*/lib")])


def _prepend(variable: str, paths: list[str]) -> None:
    os.environ[variable] = os.pathsep.join([*paths, *filter(None, [os.environ.get(variable)])])


def main() -> None:
    """Print each step's outcome; exit with 1 if a step failed, was short, or had no time, 2 if nothing can be run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "lent", help="for records and logs")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to import first, such as onnxruntime-gpu's")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which nothing runs any more")
    parser.add_argument("--requests", type=int, default=10_000, help="ranked by both engines")
    parser.add_argument("--check", action="store_true", help="only say what the machine lacks")
    parser.add_argument("--dry", action="store_true", help="without a GPU, on small shapes: times say nothing")
    options = parser.parse_args()
    began = time.monotonic()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if options.wheels:
        use_wheels(options.wheels, out / "site")
    lacking = {} if options.dry else needs.lacking()
    for step, lacks in lacking.items():
        print(*(f"{step}: {each}" for each in lacks), sep="\n", flush=True)
    if not {"build", "kernels"}.isdisjoint(lacking):
        sys.exit(2)
    failed = bool(lacking)
    measured = benchmarks(out, options.requests)
    for step in [] if options.check else dry(measured) if options.dry else [*build(), *measured]:
        left = options.seconds - (time.monotonic() - began)
        code = run(step, out, left) if left >= step.least and step.name not in lacking else None
        failed |= code != 0
        outcome = f"exit code {code}" if code is not None else "left out" if step.name in lacking else "no time"
        print(f"{step.name}: {outcome} at {time.monotonic() - began:.0f} s", flush=True)
        if code and step.name in {"configure", "build"} and not _built():
            break
    sys.exit(failed)


def _built() -> bool:
    return (ROOT / "gr2" / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}").is_file()


if __name__ == "__main__":
    main()

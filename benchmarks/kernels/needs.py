"""What a machine lacks for the steps of `benchmarks.kernels.lent`, looked for before any time is spent on them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.results import commit

__all__ = ["lacking"]

PROBE = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.cuda.is_available()}
try:
    import onnxruntime
    found |= {"onnxruntime": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}
except ImportError as error:
    found |= {"onnxruntime": str(error), "providers": []}
print(json.dumps(found))
"""


def lacking() -> dict[str, list[str]]:
    """What each step lacks, and how to mend it; a step that is not named lacks nothing."""
    found = _probe()
    lists = {"build": _build(), "kernels": _record() + _kernels(found), "serving": _serving(found)}
    return {step: lacks for step, lacks in lists.items() if lacks}


def _build() -> list[str]:
    lacks = [f"{name} is not on the PATH" for name in ("cmake", "ninja") if shutil.which(name) is None]
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        lacks.append("no C++ compiler is on the PATH")
    if not Path(sysconfig.get_paths(scheme="posix_prefix")["include"], "Python.h").is_file():
        lacks.append(f"Python.h of {sys.executable} is not there: install Python's headers")
    try:
        if int(version("pybind11").partition(".")[0]) < 3:
            lacks.append(f"pybind11 is {version('pybind11')}: install 3 or newer")
    except PackageNotFoundError:
        lacks.append("pybind11 is not installed: install 3 or newer")
    return lacks


def _record() -> list[str]:
    """What keeps a record from saying which commit it is of."""
    try:
        name = commit()
    except (OSError, subprocess.CalledProcessError) as error:
        return [f"git does not say the commit ({error}): is the checkout another user's? remove .git, set GR2_COMMIT"]
    return ["there is no .git: set GR2_COMMIT to the commit of this copy"] if name == "unknown" else []


def _modules(*names: str) -> list[str]:
    return [f"the module {name} is not installed" for name in names if find_spec(name) is None]


def _kernels(found: dict[str, Any]) -> list[str]:
    lacks = _modules("numpy", "torch", "triton")
    # Triton compiles its launcher when it first starts a kernel.
    if shutil.which("gcc") is None and shutil.which("clang") is None:
        lacks.append("no C compiler is on the PATH")
    if "torch" in found and not found["cuda"]:
        lacks.append(f"torch {found['torch']} finds no CUDA device: is it a build for CUDA? what does nvidia-smi say?")
    return lacks


def _serving(found: dict[str, Any]) -> list[str]:
    lacks = _modules("onnx", "onnxruntime", "pyarrow", "rich", "safetensors", "scipy")
    if "torch" in found and "CUDAExecutionProvider" not in found["providers"]:
        lacks.append(
            f"onnxruntime ({found['onnxruntime']}) has no CUDA provider: bring the wheel of onnxruntime-gpu for this "
            "Python and torch's CUDA, and name its folder with --wheels"
        )
    return lacks


def _probe() -> dict[str, Any]:
    """What torch and onnxruntime say, from a process of its own; {} without torch."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError:
        return {}
    return found

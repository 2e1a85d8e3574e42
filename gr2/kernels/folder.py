"""Compiled kernels in a folder that may be moved or copied, and what else a machine needs to start them from it."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import triton
from triton.backends.nvidia import driver
from triton.compiler import CompiledKernel
from triton.runtime.build import compile_module_from_src, platform_key
from triton.runtime.cache import FileCacheManager, get_cache_manager

__all__ = ["FolderCache", "compile_launchers", "use_folder_cache"]

logger = logging.getLogger(__name__)


class FolderCache(FileCacheManager):  # type: ignore[misc]
    """Triton's cache, but that the files of a kernel are those beside their list, wherever the folder is by now.

    Triton's own looks where they were when they were written. A kernel of which a file is missing or is not as long as
    it was, as after a copy that did not end, is compiled again.
    """

    def get_group(self, filename: str) -> dict[str, str] | None:
        """The path of each file of the list; None if one is not what it was."""
        listed = self.get_file(_list_name(filename))
        try:
            content = json.loads(Path(listed).read_text()) if listed else {}
        except ValueError:
            return None
        names, lengths = content.get("child_paths", {}), content.get("lengths", {})
        paths = {name: Path(self._make_path(name)) for name in names}
        if not paths or any(not path.is_file() for path in paths.values()):
            return None
        if any(path.stat().st_size != lengths.get(name, path.stat().st_size) for name, path in paths.items()):
            return None
        return {name: str(path) for name, path in paths.items()}

    def put_group(self, filename: str, group: dict[str, str]) -> str:
        """Write the list of the files, as Triton's own reads it, too."""
        lengths = {name: Path(path).stat().st_size for name, path in group.items()}
        written: str = self.put(json.dumps({"child_paths": group, "lengths": lengths}), _list_name(filename))
        return written


def _list_name(filename: str) -> str:
    return f"__grp__{filename}"


def use_folder_cache() -> None:
    """Let Triton in this process take kernels from a folder that was moved, unless it has been given another cache."""
    if triton.knobs.cache.manager_class is None:
        triton.knobs.cache.manager_class = FolderCache


def compile_launchers(kernels: Iterable[CompiledKernel]) -> None:
    """Compile the C modules by which Triton starts the kernels into its cache; where that fails, a line in the log.

    Triton compiles them when a process first starts a kernel. With them in the cache, the machine with the GPU needs no
    C compiler, and need not be able to write there.
    """
    sources = {Path(driver.dirname, "driver.c").read_text(): "cuda_utils"}
    # Before 3.7, Triton has another one for each signature of a kernel.
    if hasattr(driver, "make_launcher"):
        sources |= {_launcher(kernel): "__triton_launcher" for kernel in kernels}
    missing = {source: name for source, name in sources.items() if not _is_held(source, name)}
    try:
        if missing:
            _compile(missing)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        logger.warning("Triton's launcher is left to the server, which needs a C compiler for it: %s", error)


def _launcher(kernel: CompiledKernel) -> str:
    """The source by which CudaLauncher starts the kernel."""
    source = kernel.src
    constants = {
        (source.fn.arg_names.index(key),) if isinstance(key, str) else key: value
        for key, value in source.constants.items()
    }
    text: str = driver.make_launcher(
        constants, dict(source.signature), getattr(kernel.metadata, "tensordesc_meta", None)
    )
    return text


def _is_held(source: str, name: str) -> bool:
    folder = Path(get_cache_manager(hashlib.sha256((source + platform_key()).encode()).hexdigest()).cache_dir)
    return any(folder.glob(f"{name}.*"))


def _compile(sources: Mapping[str, str]) -> None:
    compiler = triton.knobs.build.cc or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FileNotFoundError("there is none here")
    library = driver.libraries[0]
    with TemporaryDirectory() as folder:
        # The linker asks for the GPU's driver, which there may be none of: a library of its name and functions does.
        functions = Path(folder, "functions.c")
        called = {name for source in sources for name in re.findall(r"\bcu[A-Z]\w*(?=\()", source)}
        functions.write_text("\n".join(f"void {name}(void) {{}}" for name in sorted(called)))
        options = ["-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", f"{folder}/{library}"]
        subprocess.run([compiler, str(functions), *options], check=True)
        for source, name in sources.items():
            try:
                compile_module_from_src(
                    source,
                    name,
                    library_dirs=[driver.libdevice_dir, folder],
                    include_dirs=driver.include_dirs,
                    libraries=driver.libraries,
                )
            except ImportError as error:
                # Without the driver the module cannot be loaded; by then it is in the cache.
                if library not in str(error):
                    raise

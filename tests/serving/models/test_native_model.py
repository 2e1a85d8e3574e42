"""onnxruntime through its C API: the library in its wheel, what is refused, and a process without the package."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gr2._core import OnnxError, OnnxRuntime
from gr2.bundle import Bundle
from gr2.errors import BundleError, Gr2Error
from gr2.serving.engine import Engine
from gr2.serving.models import native_model
from gr2.serving.models.native_model import NativeModel, find_library, native_runtime

MakeBundle = Callable[..., Path]
KNOWN = [1000 + 7 * item for item in range(300)]
ANSWER = """
import json, sys
from gr2._core import Call
from gr2.serving.server import Server
from gr2.client import Client
server = Server(sys.argv[1], port=0)
server.start()
with Client(server.address) as client:
    items = len(client.rerank([], [1000, 1007], timeout=30).items)
server.stop(5)
print(json.dumps([items, "onnxruntime" in sys.modules]))
"""


def test_the_library_is_that_of_the_installed_package() -> None:
    assert OnnxRuntime(find_library()).version == importlib.metadata.version("onnxruntime")


def test_a_server_that_answers_in_the_core_does_not_import_onnxruntime(make_bundle: MakeBundle) -> None:
    command = [sys.executable, "-c", ANSWER, str(make_bundle())]
    assert json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout) == [2, False]


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "libonnxruntime.so"
    path.write_bytes(b"not a library")
    with pytest.raises(OnnxError, match="cannot be loaded"):
        OnnxRuntime(path)
    with pytest.raises(OnnxError, match="cannot be loaded"):
        OnnxRuntime(tmp_path / "absent.so")


def test_another_library_is_refused() -> None:
    name = ctypes.util.find_library("m")
    if name is None:
        pytest.skip("no libm")
    with pytest.raises(OnnxError, match="no onnxruntime"):
        OnnxRuntime(name)


def test_python_answers_where_the_library_cannot_be_used(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def absent() -> Path:
        raise Gr2Error("libonnxruntime.so not found")

    monkeypatch.setattr(native_model, "find_library", absent)
    native_runtime.cache_clear()
    engine = Engine(make_bundle(), native=True)
    native_runtime.cache_clear()
    assert engine.native is None
    assert len(engine.rerank([], KNOWN[:3]).items) == 3
    assert "answered in Python, which is slower: libonnxruntime.so not found" in caplog.text


def test_a_file_that_is_no_graph_is_refused(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.load(make_bundle())
    monkeypatch.setattr(Bundle, "read_graph", lambda *_: b"not a graph")
    with pytest.raises(BundleError, match=r"model\.onnx: onnxruntime cannot load it"):
        Engine(bundle, native=True)


def test_a_graph_that_is_not_the_manifests_is_refused(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Bundle.load(make_bundle(width=2))
    graph = other.read_graph(other.graph)
    monkeypatch.setattr(Bundle, "read_graph", lambda *_: graph)
    with pytest.raises(BundleError, match="features has width 5, expected 3"):
        Engine(make_bundle(), native=True)


def test_scores_are_those_of_the_package(make_bundle: MakeBundle) -> None:
    engines = [Engine(make_bundle(head=True, normalization="local"), native=native) for native in (True, False)]
    assert isinstance(engines[0]._model, NativeModel)
    found, expected = (engine.rerank(KNOWN[:9], KNOWN[9:80], scores=np.arange(71)) for engine in engines)
    assert found.items == expected.items

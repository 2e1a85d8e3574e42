"""Where a bundle is served: what stands in the way of a GPU is said once, and "cuda" is never quietly the CPU."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import pytest

from gr2.bundle import Bundle
from gr2.errors import ConfigError
from gr2.export.random_bundle import write_random_bundle
from gr2.serving.engine import Engine
from gr2.serving.models.device import choose_device
from gr2.serving.server import Server

MakeBundle = Callable[..., Path]
no_gpu = pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="onnxruntime has CUDA")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_bundle(tmp_path_factory.mktemp("student") / "bundle", items=50, level_size=16, dim=8)


@no_gpu
def test_auto_serves_on_the_cpu_and_says_why_in_one_line(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="gr2"):
        engine = Engine(bundle, device="auto")
    assert engine.device == "cpu"
    assert [(record.levelname, record.name) for record in caplog.records] == [("WARNING", "gr2.serving.models.device")]
    expected = f"serving on the CPU: onnxruntime {ort.__version__} has no CUDA provider; install onnxruntime-gpu"
    assert caplog.messages[0].startswith(expected)
    plain = Engine(bundle)
    assert engine.rerank([1, 2], [5, 6, 7]).items == plain.rerank([1, 2], [5, 6, 7]).items


def test_cpu_is_the_default_and_says_nothing(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="gr2"):
        assert Engine(bundle).device == "cpu"
    assert not caplog.records


@no_gpu
def test_cuda_without_its_provider_is_an_error(bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"device cuda: onnxruntime .* has no CUDA provider; install onnxruntime-gpu"):
        Engine(bundle, device="cuda")


def test_bundle_without_a_graph_for_batches_names_the_way_to_get_one(make_bundle: MakeBundle) -> None:
    with pytest.raises(ConfigError, match=r"holds no batch.onnx; export it again with `export.batched = true`"):
        Engine(make_bundle(), device="cuda")


def test_provider_without_a_device_is_an_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    pytest.importorskip("triton")
    # What onnxruntime-gpu says on a machine without a GPU.
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(ConfigError, match="finds no CUDA device"):
        choose_device("cuda", Bundle.load(bundle))


@pytest.fixture
def promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that promises a GPU and has none: drivers and libraries that do not fit look like this."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    pytest.importorskip("triton")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("promised")
def test_auto_serves_on_the_cpu_when_the_gpu_does_not_load(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="gr2"):
        server = Server(bundle, port=0, device="auto")
    assert server.engine.device == "cpu"
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("serving on the CPU: device cuda: it cannot be used: ")
    assert server._admission.bound == server.config.queue + len(os.sched_getaffinity(0))
    plain = Engine(bundle)
    assert server.engine.rerank([1, 2], [5, 6, 7]).items == plain.rerank([1, 2], [5, 6, 7]).items
    server.engine.close()


@pytest.mark.usefixtures("promised")
def test_cuda_that_does_not_load_is_an_error(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="device cuda: it cannot be used: "):
        Engine(bundle, device="cuda")


def test_other_devices_are_refused(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="device must be auto, cpu, cuda, got 'gpu'"):
        Engine(bundle, device="gpu")


def test_serving_on_the_cpu_loads_neither_torch_nor_triton(bundle: Path) -> None:
    code = (
        "import sys\n"
        "from gr2.serving.engine import Engine\n"
        f"Engine({str(bundle)!r}, device='cpu').rerank([1], [2, 3])\n"
        "assert not {'torch', 'triton'} & set(sys.modules), 'loaded'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""The committed gRPC code is what the compiler makes of the .proto file."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("service", ["management", "open_inference", "reranker"])
@pytest.mark.parametrize("kind", ["pb2.py", "pb2.pyi", "pb2_grpc.py"])
@pytest.mark.filterwarnings("ignore")
def test_committed_code_equals_freshly_generated_code(service: str, kind: str, tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main(["protoc", f"-I{ROOT / 'proto'}", *outputs, f"gr2/v1/{service}.proto"]) == 0
    name = f"{service}_{kind}"
    assert (tmp_path / "gr2" / "v1" / name).read_text() == (ROOT / "gr2" / "v1" / name).read_text()

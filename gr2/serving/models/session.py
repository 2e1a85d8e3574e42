"""onnxruntime sessions of a bundle's graphs, refused if a graph is not as the manifest describes it.

onnxruntime is imported where a session is opened: a process that runs its graphs in C++ would load it twice.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr2.bundle import Bundle, Manifest, encoder_inputs, graph_inputs, graph_outputs, scorer_inputs
from gr2.errors import BundleError

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["CPU", "CUDA", "differences", "open_pair", "open_session", "pair_differences"]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def open_session(
    bundle: Bundle, threads: int, *, batched: bool = False, cuda: Mapping[str, str] | None = None
) -> ort.InferenceSession:
    """A session of the bundle's graph; one model run uses `threads` threads.

    `batched` takes the graph for batches of requests. With `cuda`, the options of onnxruntime's CUDA provider, it runs
    on a GPU. Raises BundleError if the graph cannot be loaded, is not what the manifest describes, or did not get the
    GPU.
    """
    path = bundle.batch_graph if batched else bundle.graph
    session = _load(bundle, path, threads, [CPU] if cuda is None else [(CUDA, dict(cuda)), CPU])
    # onnxruntime falls back in silence when the provider's libraries are missing.
    if cuda is not None and CUDA not in session.get_providers():
        raise BundleError(
            f"{path}: onnxruntime could not load its CUDA provider; are CUDA's and cuDNN's libraries there?"
        )
    if wrong := differences(session, bundle.manifest, batched=batched):
        raise BundleError(f"{path}: not the graph that the manifest describes: {'; '.join(wrong)}")
    return session


def open_pair(bundle: Bundle, pair: tuple[Path, Path], threads: int) -> tuple[ort.InferenceSession, ...]:
    """Sessions on the CPU of the bundle's encoder and scorer. Raises BundleError as `open_session` does.

    The scorer takes the encoder's outputs by name, and of a request what `scorer_inputs` lists.
    """
    encoder, scorer = (_load(bundle, path, threads, [CPU]) for path in pair)
    for path, wrong in zip(pair, pair_differences(encoder, scorer), strict=True):
        if wrong:
            raise BundleError(f"{path}: not the graph that the manifest describes: {'; '.join(wrong)}")
    return encoder, scorer


def pair_differences(encoder: Any, scorer: Any) -> tuple[list[str], list[str]]:
    """What differs between the two graphs, which tell their `get_inputs` and `get_outputs`, and the contract."""
    encoded = {item.name: (_type(item), len(item.shape)) for item in encoder.get_outputs()}
    inputs = {**scorer_inputs(), **encoded}
    wanted = {item.name: inputs[item.name] for item in scorer.get_inputs() if item.name in inputs}
    return (
        _mismatches(encoder.get_inputs(), encoder_inputs()),
        _mismatches(scorer.get_inputs(), wanted) + _mismatches(scorer.get_outputs(), graph_outputs()),
    )


def _load(bundle: Bundle, path: Path, threads: int, providers: list[Any]) -> ort.InferenceSession:
    import onnxruntime as ort

    graph = bundle.read_graph(path)
    try:
        return ort.InferenceSession(graph, _options(threads), providers=providers)
    except Exception as error:
        raise BundleError(f"{path}: onnxruntime cannot load it: {error}") from error


def _options(threads: int) -> ort.SessionOptions:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Shapes differ from request to request: memory planned for one is of no use to the next, and is never freed.
    options.enable_mem_pattern = False
    for pool in ("intra", "inter"):
        options.add_session_config_entry(f"session.{pool}_op.allow_spinning", "0")
    # The hash covers the graph's own bytes only: external data is sought where nothing can be.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    return options


def differences(session: Any, manifest: Manifest, *, batched: bool = False) -> list[str]:
    """What differs between a graph, which tells its `get_inputs` and `get_outputs`, and the manifest's contract."""
    model = manifest.model
    inputs = graph_inputs(model.levels, candidates=model.takes_candidates, batched=batched)
    wrong = _mismatches(session.get_inputs(), inputs)
    wrong += _mismatches(session.get_outputs(), graph_outputs(batched=batched))
    widths = {item.name: item.shape[-1] for item in [*session.get_inputs(), *session.get_outputs()] if item.shape}
    expected = {
        "history": model.levels,
        "candidates": model.levels,
        "features": manifest.features.columns,
        "logits": model.level_size,
    }
    for name, width in expected.items():
        if isinstance(widths.get(name), int) and widths[name] != width:
            wrong.append(f"{name} has width {widths[name]}, expected {width}")
    return wrong


def _mismatches(values: Sequence[Any], expected: dict[str, tuple[str, int]]) -> list[str]:
    """What differs between a graph's inputs or outputs and the contract."""
    found = {value.name: (_type(value), len(value.shape)) for value in values}
    return [
        f"{name} is {_say(found.get(name))}, expected {_say(expected.get(name))}"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]


def _type(value: Any) -> str:
    names = {"tensor(int64)": "int64", "tensor(float)": "float32"}
    return names.get(value.type, str(value.type))


def _say(kind: tuple[str, int] | None) -> str:
    return "absent" if kind is None else f"{kind[0]} of rank {kind[1]}"

"""Requests and responses as the named tensors of the Open Inference Protocol, and back."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from gr2.bundle import Bundle
from gr2.errors import RequestError
from gr2.v1 import open_inference_pb2 as inference
from gr2.v1 import reranker_pb2

__all__ = ["metadata_of", "request_of", "response_of"]

LENGTH = struct.Struct("<I")
FIELDS = {"INT64": "int64_contents", "BYTES": "bytes_contents", "FP32": "fp32_contents", "INT32": "int_contents"}
NUMBERS = {"INT64": "<i8", "FP32": "<f4", "INT32": "<i4"}
IDS = ("INT64", "BYTES")
INPUTS = {"history": IDS, "candidates": IDS, "scores": ("FP32",), "features": ("FP32",)}
OUTPUTS = ("index", "item_id", "score", "status")
PARAMETERS = {"top_n": "int64_param", "fallback": "bool_param", "priority": "int64_param"}


def metadata_of(bundle: Bundle, name: str, label: str) -> inference.ModelMetadataResponse:
    """What a client must know of a bundle: its tensors, -1 where a length is the request's."""
    manifest = bundle.manifest
    kind = "INT64" if manifest.codebook.id_type == "int64" else "BYTES"
    tensor = inference.ModelMetadataResponse.TensorMetadata
    inputs = [tensor(name=each, datatype=kind, shape=[-1]) for each in ("history", "candidates")]
    inputs.append(tensor(name="scores", datatype="FP32", shape=[-1]))
    if manifest.features.width:
        inputs.append(tensor(name="features", datatype="FP32", shape=[-1, manifest.features.width]))
    kinds = {"index": "INT32", "item_id": kind, "score": "FP32", "status": "INT32"}
    outputs = [tensor(name=each, datatype=kinds[each], shape=[-1]) for each in OUTPUTS]
    return inference.ModelMetadataResponse(
        name=name, versions=[label or bundle.version], platform="gr2_onnx", inputs=inputs, outputs=outputs
    )


def request_of(infer: inference.ModelInferRequest) -> reranker_pb2.RerankRequest:
    """The request that the tensors hold. Raises RequestError for tensors that hold none."""
    raw = infer.raw_input_contents
    if raw and len(raw) != len(infer.inputs):
        raise RequestError("raw_input_contents", f"one a tensor ({len(infer.inputs)}) or none, got {len(raw)}")
    unknown = {tensor.name for tensor in infer.inputs} - set(INPUTS)
    if unknown or len({tensor.name for tensor in infer.inputs}) != len(infer.inputs):
        got = ", ".join(tensor.name for tensor in infer.inputs)
        raise RequestError("inputs", f"each of {', '.join(INPUTS)} at most once, got {got}")
    if absent := {output.name for output in infer.outputs} - set(OUTPUTS):
        raise RequestError("outputs", f"there are {', '.join(OUTPUTS)}, got {', '.join(sorted(absent))}")
    request = reranker_pb2.RerankRequest(request_id=infer.id, bundle=infer.model_name)
    for place, tensor in enumerate(infer.inputs):
        values = _values(tensor, raw[place] if raw else None)
        if tensor.name in ("scores", "features"):
            getattr(request, tensor.name).extend(values)
        elif tensor.datatype == "INT64":
            getattr(request, tensor.name).ints.extend(values)
        else:
            getattr(request, tensor.name).strings.extend(_text(tensor.name, value) for value in values)
    for name, parameter in infer.parameters.items():
        if PARAMETERS.get(name) != parameter.WhichOneof("parameter_choice"):
            known = ", ".join(f"{each} ({kind})" for each, kind in PARAMETERS.items())
            raise RequestError("parameters", f"there are {known}, got {name}")
        try:
            setattr(request, name, getattr(parameter, PARAMETERS[name]))
        except ValueError as error:
            raise RequestError(name, str(error)) from error
    return request


def response_of(
    infer: inference.ModelInferRequest, reply: reranker_pb2.RerankResponse, name: str
) -> inference.ModelInferResponse:
    """The tensors of a reply, those that were asked for, in the form that the request had."""
    ranking = reply.ranking
    strings = any(item.HasField("string_id") for item in ranking)
    ids = [item.string_id.encode() for item in ranking] if strings else [item.int_id for item in ranking]
    columns: dict[str, tuple[str, Sequence[Any]]] = {
        "index": ("INT32", [item.index for item in ranking]),
        "item_id": ("BYTES" if strings else "INT64", ids),
        "score": ("FP32", [item.score for item in ranking]),
        "status": ("INT32", [item.status for item in ranking]),
    }
    response = inference.ModelInferResponse(model_name=name, model_version=reply.bundle_version, id=infer.id)
    response.parameters["unknown_history"].int64_param = reply.unknown_history
    response.parameters["fallback"].bool_param = reply.fallback
    for wanted in [output.name for output in infer.outputs] or OUTPUTS:
        datatype, values = columns[wanted]
        tensor = response.outputs.add(name=wanted, datatype=datatype, shape=[len(values)])
        if infer.raw_input_contents:
            response.raw_output_contents.append(_raw(datatype, values))
        else:
            getattr(tensor.contents, FIELDS[datatype]).extend(values)
    return response


def _values(tensor: inference.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Sequence[Any]:
    """A tensor's values, row by row."""
    if tensor.datatype not in INPUTS[tensor.name]:
        expected = " or ".join(INPUTS[tensor.name])
        raise RequestError(tensor.name, f"must be {expected}, got {tensor.datatype or 'no datatype'}")
    ranks = (1, 2) if tensor.name == "features" else (1,)
    if len(tensor.shape) not in ranks or min(tensor.shape) < 0:
        raise RequestError(tensor.name, f"must have rank {' or '.join(map(str, ranks))}, got {list(tensor.shape)}")
    values: Sequence[Any] = getattr(tensor.contents, FIELDS[tensor.datatype])
    if raw is not None:
        values = _unpacked(tensor.name, raw) if tensor.datatype == "BYTES" else _numbers(tensor, raw)
    if len(values) != math.prod(tensor.shape):
        raise RequestError(tensor.name, f"shape {list(tensor.shape)} takes other than {len(values)} values")
    return values


def _numbers(tensor: inference.ModelInferRequest.InferInputTensor, raw: bytes) -> Sequence[Any]:
    kind = np.dtype(NUMBERS[tensor.datatype])
    if len(raw) % kind.itemsize:
        raise RequestError(tensor.name, f"{len(raw)} bytes are no {tensor.datatype} values")
    numbers: list[Any] = np.frombuffer(raw, dtype=kind).tolist()
    return numbers


def _unpacked(name: str, raw: bytes) -> list[bytes]:
    values, at = [], 0
    while at < len(raw):
        end = at + LENGTH.size
        if end <= len(raw):
            end += LENGTH.unpack_from(raw, at)[0]
        if not at + LENGTH.size <= end <= len(raw):
            raise RequestError(name, f"a value of BYTES ends after the {len(raw)} bytes there are")
        values.append(raw[at + LENGTH.size : end])
        at = end
    return values


def _raw(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype == "BYTES":
        return b"".join(LENGTH.pack(len(value)) + value for value in values)
    return np.array(values, dtype=NUMBERS[datatype]).tobytes()


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise RequestError(name, "item IDs must be UTF-8") from error

"""The Open Inference Protocol's face gives the answers of ours, over the wire."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from gr2.serving.server import Server
from gr2.serving.services.tensors import request_of, response_of
from gr2.v1 import open_inference_pb2 as inference
from gr2.v1 import open_inference_pb2_grpc, reranker_pb2, reranker_pb2_grpc

MakeBundle = Callable[..., Path]
WIDTH = 2
IDS = {"int64": [1000 + 7 * item for item in range(300)], "string": [f"artículo-{item:04d}" for item in range(300)]}


@pytest.fixture(scope="module", params=["int64", "string"])
def id_type(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def server(make_bundle: MakeBundle, id_type: str) -> Iterator[Server]:
    server = Server(make_bundle(id_type, width=WIDTH), port=0)
    server.start()
    yield server
    server.stop(5)


def tensor(name: str, datatype: str, values: Any, shape: list[int] | None = None) -> Any:
    field = {"INT64": "int64_contents", "BYTES": "bytes_contents", "FP32": "fp32_contents"}[datatype]
    contents = inference.InferTensorContents(**{field: values})
    shape = [len(values)] if shape is None else shape
    return inference.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape, contents=contents)


def example(id_type: str) -> tuple[reranker_pb2.RerankRequest, inference.ModelInferRequest]:
    """The same request in both protocols, with an unknown item in each list."""
    ids = IDS[id_type]
    unknown = -1 if id_type == "int64" else "nobody's"
    history, candidates = [*ids[:6], unknown], [*ids[40:60], unknown]
    rng = np.random.default_rng(0)
    scores = np.sort(rng.normal(size=21))[::-1].astype(np.float32).tolist()
    features = rng.normal(size=21 * WIDTH).astype(np.float32).tolist()
    field = "ints" if id_type == "int64" else "strings"
    ours = reranker_pb2.RerankRequest(
        request_id="a",
        history=reranker_pb2.ItemIds(**{field: history}),
        candidates=reranker_pb2.ItemIds(**{field: candidates}),
        scores=scores,
        features=features,
        top_n=9,
    )
    datatype = "INT64" if id_type == "int64" else "BYTES"
    lists = [[item if id_type == "int64" else item.encode() for item in each] for each in (history, candidates)]
    theirs = inference.ModelInferRequest(
        id="a",
        inputs=[
            tensor("history", datatype, lists[0]),
            tensor("candidates", datatype, lists[1]),
            tensor("scores", "FP32", scores),
            tensor("features", "FP32", features, [21, WIDTH]),
        ],
    )
    theirs.parameters["top_n"].int64_param = 9
    return ours, theirs


def raw_form(request: inference.ModelInferRequest) -> inference.ModelInferRequest:
    """The same request with raw contents."""
    packed = inference.ModelInferRequest()
    packed.CopyFrom(request)
    for each in packed.inputs:
        if each.datatype == "BYTES":
            values = each.contents.bytes_contents
            packed.raw_input_contents.append(b"".join(struct.pack("<I", len(value)) + value for value in values))
        elif each.datatype == "INT64":
            packed.raw_input_contents.append(np.array(each.contents.int64_contents, dtype="<i8").tobytes())
        else:
            packed.raw_input_contents.append(np.array(each.contents.fp32_contents, dtype="<f4").tobytes())
        each.ClearField("contents")
    return packed


def test_how_a_request_is_to_be_treated_is_in_its_parameters(id_type: str) -> None:
    ours, theirs = example(id_type)
    ours.fallback, ours.priority = True, reranker_pb2.PRIORITY_LOW
    theirs.parameters["fallback"].bool_param, theirs.parameters["priority"].int64_param = True, 2
    assert request_of(theirs) == ours


def test_the_answer_is_that_of_rerank_in_both_forms(channel: grpc.Channel, server: Server, id_type: str) -> None:
    ours, theirs = example(id_type)
    expected = reranker_pb2_grpc.RerankerStub(channel).Rerank(ours, timeout=10)
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
    reply = stub.ModelInfer(theirs, timeout=10)
    columns = {each.name: each for each in reply.outputs}
    assert list(columns) == ["index", "item_id", "score", "status"]
    assert columns["index"].contents.int_contents == [item.index for item in expected.ranking]
    assert columns["score"].contents.fp32_contents == [item.score for item in expected.ranking]
    assert columns["status"].contents.int_contents == [item.status for item in expected.ranking]
    ids = columns["item_id"].contents
    found = list(ids.int64_contents) or [value.decode() for value in ids.bytes_contents]
    assert found == [item.string_id or item.int_id for item in expected.ranking]
    assert [each.shape for each in reply.outputs] == [[9]] * 4
    assert (reply.model_name, reply.model_version, reply.id) == ("default", server.engine.version, "a")
    assert reply.parameters["unknown_history"].int64_param == 1
    packed = stub.ModelInfer(raw_form(theirs), timeout=10)
    assert packed.raw_output_contents[0] == np.array(columns["index"].contents.int_contents, dtype="<i4").tobytes()
    assert packed.raw_output_contents[2] == np.array(columns["score"].contents.fp32_contents, dtype="<f4").tobytes()
    assert len(packed.raw_output_contents) == 4
    assert not packed.outputs[0].HasField("contents")


def test_only_the_outputs_asked_for_come(channel: grpc.Channel, id_type: str) -> None:
    _, theirs = example(id_type)
    theirs.outputs.add(name="score")
    reply = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(theirs, timeout=10)
    assert [each.name for each in reply.outputs] == ["score"]


def test_health_and_metadata(channel: grpc.Channel, server: Server, id_type: str) -> None:
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
    version = server.engine.version
    assert stub.ServerLive(inference.ServerLiveRequest(), timeout=10).live
    assert stub.ServerReady(inference.ServerReadyRequest(), timeout=10).ready
    assert stub.ModelReady(inference.ModelReadyRequest(name="default", version=version), timeout=10).ready
    assert not stub.ModelReady(inference.ModelReadyRequest(name="other"), timeout=10).ready
    assert stub.ServerMetadata(inference.ServerMetadataRequest(), timeout=10).name == "gr2"
    about = stub.ModelMetadata(inference.ModelMetadataRequest(name="default"), timeout=10)
    kind = "INT64" if id_type == "int64" else "BYTES"
    assert [(each.name, each.datatype, list(each.shape)) for each in about.inputs] == [
        ("history", kind, [-1]),
        ("candidates", kind, [-1]),
        ("scores", "FP32", [-1]),
        ("features", "FP32", [-1, WIDTH]),
    ]
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelMetadata(inference.ModelMetadataRequest(name="default", version="0"), timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def wrong(change: Callable[[inference.ModelInferRequest], Any]) -> inference.ModelInferRequest:
    _, theirs = example("int64")
    change(theirs)
    return theirs


def no_parameter(request: inference.ModelInferRequest) -> None:
    request.parameters["temperature"].int64_param = 1


def other_kind(request: inference.ModelInferRequest) -> None:
    request.parameters["top_n"].string_param = "9"


def negative(request: inference.ModelInferRequest) -> None:
    request.parameters["top_n"].int64_param = -9


WRONG = {
    "inputs": wrong(lambda each: each.inputs.add(name="logits", datatype="FP32", shape=[0])),
    "inputs: ": wrong(lambda each: each.inputs.append(each.inputs[0])),
    "outputs": wrong(lambda each: each.outputs.add(name="logits")),
    "history: must be INT64 or BYTES, got FP64": wrong(lambda each: setattr(each.inputs[0], "datatype", "FP64")),
    "scores: must be FP32": wrong(lambda each: setattr(each.inputs[2], "datatype", "INT64")),
    "candidates: shape": wrong(lambda each: each.inputs[1].shape.__setitem__(0, 20)),
    "scores: must have rank 1": wrong(lambda each: each.inputs[2].shape.append(1)),
    "history: must have rank": wrong(lambda each: each.inputs[0].shape.__setitem__(0, -7)),
    "parameters: there are top_n": wrong(no_parameter),
    "parameters": wrong(other_kind),
    "top_n": wrong(negative),
    "raw_input_contents": wrong(lambda each: each.raw_input_contents.append(b"")),
    "candidates: at least one": inference.ModelInferRequest(),
    "model_version": wrong(lambda each: setattr(each, "model_version", "0")),
}


@pytest.mark.parametrize("said", list(WRONG))
def test_what_is_no_request_is_refused_by_name(server: Server, channel: grpc.Channel, said: str) -> None:
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(WRONG[said], timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith(said)


@pytest.mark.parametrize("raw", [b"\x01", b"\x05\x00\x00\x00ab", b"\xff\xff\xff\xff"])
def test_strings_that_end_early_are_refused(channel: grpc.Channel, raw: bytes) -> None:
    inputs = [inference.ModelInferRequest.InferInputTensor(name="candidates", datatype="BYTES", shape=[1])]
    request = inference.ModelInferRequest(inputs=inputs, raw_input_contents=[raw])
    with pytest.raises(grpc.RpcError) as caught:
        open_inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=10)
    assert "ends after" in caught.value.details()


def test_bytes_that_are_no_message_are_refused(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\xff", timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_calls_are_counted_with_those_of_rerank(make_bundle: MakeBundle) -> None:
    server = Server(make_bundle(width=WIDTH), port=0)
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        open_inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(example("int64")[1], timeout=10)
    server.stop(5)
    assert 'gr2_requests_total{status="OK"} 1' in server.metrics.text()


def test_requests_and_responses_keep_what_they_hold() -> None:
    ours, theirs = example("string")
    assert request_of(theirs) == ours
    assert request_of(raw_form(theirs)) == ours
    reply = reranker_pb2.RerankResponse(bundle_version="v", fallback=True)
    assert response_of(theirs, reply, "m").parameters["fallback"].bool_param

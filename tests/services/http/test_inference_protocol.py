"""Open Inference Protocol v2: JSON and binary tensors, files, metadata, errors, and Triton's own client."""

from __future__ import annotations

import base64
import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

httpx = pytest.importorskip("httpx")

INFER = "/v2/models/small/infer"


def as_json(images: np.ndarray, **request: Any) -> dict[str, Any]:
    tensor = {"name": "image", "shape": list(images.shape), "datatype": "UINT8", "data": images.ravel().tolist()}
    return {"inputs": [tensor], **request}


def test_metadata_names_the_server_its_models_and_their_tensors(client):
    assert client.get("/v2").json() == {"name": "mri-edge", "version": "0.1.0", "extensions": ["binary_tensor_data"]}
    assert client.get("/v2/").json() == client.get("/v2").json()  # the path in the specification's OpenAPI file
    model = client.get("/v2/models/small").json()
    assert client.get("/v2/models/small/versions/0.1.0").json() == model
    assert model["versions"] == ["0.1.0"]
    assert model["platform"] == "onnxruntime_onnx"
    assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 128, 128, 3]}]
    assert [output["name"] for output in model["outputs"]] == ["probabilities", "label"]


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/v2/models/small/ready"])
def test_health_answers_200_without_a_body_that_clients_must_read(client, path):
    assert client.get(path).status_code == client.head(path).status_code == 200
    assert client.head(path).content == b""


def test_json_tensors_give_the_probabilities_of_the_engine(client, small, images):
    expected, chosen = small.predict_tensors(images)
    response = client.post(INFER, json=as_json(images, id="scan 7"))
    assert response.status_code == 200
    answer = response.json()
    assert answer["id"] == "scan 7"
    assert (answer["model_name"], answer["model_version"]) == ("small", "0.1.0")
    probabilities, label = answer["outputs"]
    assert probabilities["shape"] == [3, 2]
    assert probabilities["datatype"] == "FP32"
    assert np.array_equal(np.float32(probabilities["data"]).reshape(3, 2), expected)
    assert label == {
        "name": "label",
        "datatype": "BYTES",
        "shape": [3],
        "data": [small.bundle.manifest.labels[index] for index in chosen],
    }


def test_nested_json_is_the_same_as_flat_json(client, images):
    nested = as_json(images)
    nested["inputs"][0]["data"] = images.tolist()
    assert client.post(INFER, json=nested).json() == client.post(INFER, json=as_json(images)).json()


def test_binary_tensors_give_binary_probabilities(client, small, images, binary):
    body, headers = binary(images, parameters={"binary_data_output": True}, id="a")
    response = client.post("/v2/models/small/versions/0.1.0/infer", content=body, headers=headers)
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers["Inference-Header-Content-Length"])
    header, data = json.loads(response.content[:length]), response.content[length:]
    sizes = [output["parameters"]["binary_data_size"] for output in header["outputs"]]
    assert sum(sizes) == len(data)
    assert header["id"] == "a"
    expected, chosen = small.predict_tensors(images)
    assert np.array_equal(np.frombuffer(data[: sizes[0]], "<f4").reshape(3, 2), expected)
    assert data[sizes[0] :] == b"".join(
        struct.pack("<I", len(label.encode())) + label.encode()
        for label in (small.bundle.manifest.labels[index] for index in chosen)
    )


def test_outputs_are_those_that_are_requested(client, images, binary):
    wanted = [{"name": "label"}, {"name": "probabilities", "parameters": {"binary_data": True}}]
    body, headers = binary(images, outputs=wanted)
    response = client.post(INFER, content=body, headers=headers)
    length = int(response.headers["Inference-Header-Content-Length"])
    label, probabilities = json.loads(response.content[:length])["outputs"]
    assert label["name"] == "label"
    assert "data" in label
    assert probabilities["parameters"] == {"binary_data_size": len(response.content) - length}


def test_a_large_request_is_split_into_batches(client, small):
    images = np.zeros((200, 128, 128, 3), np.uint8)
    images[150] = 90
    body, headers = struct.pack("0s", b""), {}
    tensor = {"name": "image", "shape": [200, 128, 128, 3], "datatype": "UINT8"}
    tensor["parameters"] = {"binary_data_size": images.nbytes}
    header = json.dumps({"inputs": [tensor]}).encode()
    body, headers = header + images.tobytes(), {"Inference-Header-Content-Length": str(len(header))}
    answer = client.post(INFER, content=body, headers=headers).json()
    probabilities = np.float32(answer["outputs"][0]["data"]).reshape(200, 2)
    expected, _ = small.predict_tensors(images[149:151])
    assert np.allclose(probabilities[149:151], expected, atol=1e-6)


@pytest.mark.parametrize("in_binary", [False, True])
def test_files_are_decoded_as_predict_does(client, small, examples, in_binary):
    files = [(examples / name).read_bytes() for name in ("phantom-2.jpg", "mni152-slice-1.jpg")]
    tensor: dict[str, Any] = {"name": "image", "shape": [2], "datatype": "BYTES"}
    data = b"".join(struct.pack("<I", len(file)) + file for file in files)
    if in_binary:
        tensor["parameters"] = {"binary_data_size": len(data)}
        header = json.dumps({"inputs": [tensor]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(header))}
        response = client.post(INFER, content=header + data, headers=headers)
    else:
        tensor["data"] = [base64.b64encode(file).decode() for file in files]
        response = client.post(INFER, json={"inputs": [tensor]})
    expected = [small.predict(file) for file in files]
    probabilities, label = response.json()["outputs"]
    assert label["data"] == [prediction.label for prediction in expected]
    values = [[*prediction.probabilities.values()] for prediction in expected]
    assert np.allclose(np.reshape(probabilities["data"], (2, 2)), values, atol=1e-6)


def test_a_dicom_file_is_decoded(client, examples):
    pytest.importorskip("pydicom")
    file = (examples / "dicom" / "mni152-slice-2.dcm").read_bytes()
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(file).decode()]}
    assert client.post(INFER, json={"inputs": [tensor]}).json()["outputs"][1]["data"] == ["no tumour"]


def test_a_file_that_cannot_be_read_is_named_by_its_position(client, examples):
    files = [(examples / "phantom-2.jpg").read_bytes(), b"\xff\xd8\xff garbage"]
    data = [base64.b64encode(file).decode() for file in files]
    response = client.post(INFER, json={"inputs": [{"name": "image", "shape": [2], "datatype": "BYTES", "data": data}]})
    assert response.status_code == 422
    assert response.json()["error"].startswith("image[1]: ")
    assert response.json()["code"] == "damaged"


def changed(**fields: Any) -> dict[str, Any]:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": ["AAAA"]}
    return {"inputs": [{**tensor, **fields}]}


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "the body is empty"),
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        ([], "must be a JSON object"),
        ({"inputs": []}, "one element"),
        ({"inputs": [1]}, "one element"),
        ({"id": 7, **changed()}, "id must be a string"),
        ({"parameters": [1], **changed()}, "parameters must be"),
        ({"parameters": {"timeout": "soon"}, **changed()}, "timeout"),
        ({"parameters": {"timeout": True}, **changed()}, "timeout"),
        ({"outputs": [{"name": "logits"}], **changed()}, "probabilities and label"),
        ({"outputs": {"name": "label"}, **changed()}, "outputs must be a list"),
        ({"outputs": [{"name": "label"}] * 3, **changed()}, "more than once"),
        (changed(name="pixels"), "name of the input must be image"),
        (changed(shape="1"), "shape must be"),
        (changed(shape=[1.0]), "shape must be"),
        (changed(shape=[True]), "shape must be"),
        (changed(shape=[0], data=[]), "from 1 to 256"),
        (changed(shape=[-1]), "from 1 to 256"),
        (changed(shape=[257]), "from 1 to 256"),
        (changed(shape=[2]), "must have 2 elements"),
        (changed(shape=[1, 1]), r"must be [N]"),
        (changed(data=["not base64!"]), "base64"),
        (changed(data="AAAA"), "flat list of strings"),
        (changed(data=[1]), "flat list of strings"),
        (changed(datatype="FP32"), "datatype must be UINT8"),
        (changed(datatype="UINT8", shape=[1, 128, 128, 1]), "[N, 128, 128, 3]"),
        (changed(datatype="UINT8", shape=[1, 128, 128, 3], data=[0]), "as many values"),
        (changed(datatype="UINT8", shape=[1, 128, 128, 3], data=[]), "as many values"),
        (changed(datatype="UINT8", shape=[1, 128, 128, 3], data=[256]), "from 0 to 255"),
        (changed(datatype="UINT8", shape=[1, 128, 128, 3], data=[-1]), "from 0 to 255"),
        (changed(datatype="UINT8", shape=[1, 128, 128, 3], data=[0.5]), "from 0 to 255"),
        (changed(datatype="UINT8", shape=[1, 128, 128, 3], data=[10**30]), "from 0 to 255"),
        (changed(datatype="UINT8", shape=[1, 128, 128, 3], data=[[1], [1, 2]]), "from 0 to 255"),
        (changed(datatype="UINT8", shape=[1, 128, 128, 3], data=[[[[[[0]]]]]]), "from 0 to 255"),
        (changed(datatype="UINT8", shape=[1, 128, 128, 3], data=[0, True]), "from 0 to 255"),
        (changed(datatype="UINT8", shape=[1, 128, 128, 3], data=[0, 0.0]), "from 0 to 255"),
        (changed(datatype="UINT8", shape=[1, 128, 128, 3], data={"0": 0}), "from 0 to 255"),
        (changed(datatype="UINT8", shape=[1, 128, 128, 3], data=5), "from 0 to 255"),
        (changed(datatype="UINT8", shape=[1, 128, 128, 3], data=[[0] * 7] * 7022), "as many values"),
        (changed(datatype="UINT8", shape=[1, 128, 128, 3], data=None), "from 0 to 255"),
        (changed(parameters={"binary_data_size": 4}), "0 bytes that follow"),
    ],
)
def test_a_bad_request_is_refused_in_one_line(client, body, problem):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = client.post(INFER, content=content)
    assert response.status_code == 400
    assert problem in response.json()["error"]
    assert "\n" not in response.json()["error"]


@pytest.mark.parametrize(
    "data",
    [
        ["a" * 30_000] + ["b"] * 30_000,
        [["a" * 30_000], *[["b"]] * 30_000],
        [10**4000] + [0] * 30_000,
        ["a" * 30_000] + [0] * 30_000,
        [[0] * 40] * 3_000,
        [[]] * 30_000,
        [{"a": [0]}] * 10_000,
    ],
    ids=["strings", "lists of strings", "a large number", "numbers and a string", "too many", "empty lists", "objects"],
)
def test_json_takes_little_more_memory_than_its_size(data):
    from mri_edge.services.http.errors import RequestRefused
    from mri_edge.services.http.inference_protocol.codec import read_request

    body = json.dumps(changed(datatype="UINT8", shape=[1, 128, 128, 3], data=data)).encode()
    tracemalloc.start()
    try:
        with pytest.raises(RequestRefused):
            read_request(body, None, 128, 128)
        assert tracemalloc.get_traced_memory()[1] < 40 * len(body)
    finally:
        tracemalloc.stop()


def test_a_timeout_beyond_every_clock_is_none(client, examples):
    file = base64.b64encode((examples / "phantom-1.jpg").read_bytes()).decode()
    response = client.post(INFER, content=json.dumps({"parameters": {"timeout": 10**400}, **changed(data=[file])}))
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("length", "data", "problem"),
    [
        ("1000000", b"", "Inference-Header-Content-Length"),
        ("0", b"", "Inference-Header-Content-Length"),
        ("-1", b"", "whole number"),
        ("9" * 5000, b"", "Inference-Header-Content-Length"),
        (None, b"", "not valid JSON"),
        ("header", b"\xff\xff\xff\xffAA", "longer than the body"),
        ("header", b"\x01\0", "longer than the body"),
        ("header", b"\x01\0\0\0A" * 2, "must have 1 elements"),
        ("header", b"\0\0\0\0" * 100_000, "must have 1 elements"),
    ],
)
def test_bad_binary_data_are_refused(client, length, data, problem):
    data = data or b"\x04\0\0\0AAAA"
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    header = json.dumps({"inputs": [tensor]}).encode()
    headers = {}
    if length is not None:
        headers["Inference-Header-Content-Length"] = str(len(header)) if length == "header" else length
    response = client.post(INFER, content=header + data, headers=headers)
    assert response.status_code == 400
    assert problem in response.json()["error"]


@pytest.mark.parametrize("size", [None, 3, "4"])
def test_the_size_of_binary_data_must_be_right(client, size):
    tensor: dict[str, Any] = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {}}
    if size is not None:
        tensor["parameters"]["binary_data_size"] = size
    header = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    response = client.post(INFER, content=header + b"\0\0\0\0", headers=headers)
    assert response.status_code == 400
    assert "binary_data_size" in response.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v2/models/huge/infer", 404),
        ("GET", "/v2/models/small/versions/9", 404),
        ("GET", INFER, 405),
        ("DELETE", "/v2", 405),
    ],
)
def test_unknown_models_and_methods_have_an_error_object(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert set(response.json()) == {"error"}


def test_tritons_client_speaks_to_the_server(server, images, small, examples: Path):
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=120)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("small", "0.1.0")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    assert client.get_model_metadata("small")["inputs"][0]["shape"] == [-1, 128, 128, 3]
    expected, chosen = small.predict_tensors(images)
    labels = [small.bundle.manifest.labels[index] for index in chosen]
    for in_binary in (True, False):
        tensor = triton.InferInput("image", list(images.shape), "UINT8")
        tensor.set_data_from_numpy(images, binary_data=in_binary)
        outputs = [triton.InferRequestedOutput(name, binary_data=in_binary) for name in ("probabilities", "label")]
        result = client.infer("small", [tensor], outputs=outputs, request_id="r1", timeout=100_000_000)
        assert np.array_equal(result.as_numpy("probabilities"), expected)
        found = [text.decode() if isinstance(text, bytes) else text for text in result.as_numpy("label")]
        assert found == labels
        assert result.get_response()["id"] == "r1"
    file = triton.InferInput("image", [1], "BYTES")
    file.set_data_from_numpy(np.array([(examples / "phantom-2.jpg").read_bytes()], dtype=object))
    assert client.infer("small", [file]).as_numpy("label").shape == (1,)
    with pytest.raises(Exception, match="must be"):
        client.infer("small", [triton.InferInput("image", [1, 2], "UINT8")])
    client.close()


def test_tritons_asynchronous_client_speaks_to_the_server(server, images, small):
    triton = pytest.importorskip("tritonclient.http.aio")
    import asyncio

    async def infer() -> list[np.ndarray]:
        async with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
            tensor = triton.InferInput("image", list(images.shape), "UINT8")
            tensor.set_data_from_numpy(images)
            answers = await asyncio.gather(*[client.infer("small", [tensor]) for _ in range(8)])
            return [answer.as_numpy("probabilities") for answer in answers]

    expected, _ = small.predict_tensors(images)
    for found in asyncio.run(infer()):
        assert np.allclose(found, expected, atol=1e-6)


def test_requests_at_the_same_time_get_their_own_answers(held, images, binary: Callable[..., Any]):
    from concurrent.futures import ThreadPoolExecutor

    server = held()
    levels = [10, 60, 110, 160, 210]

    def ask(level: int) -> float:
        body, headers = binary(np.full((1, 128, 128, 3), level, np.uint8))
        answer = httpx.post(server.url + INFER, content=body, headers=headers, timeout=120).json()
        return float(answer["outputs"][0]["data"][1])

    with ThreadPoolExecutor(len(levels)) as pool:
        found = [pool.submit(ask, levels[0])]
        assert server.engine.running.wait(120)
        found += [pool.submit(ask, level) for level in levels[1:]]
        server.wait_until(lambda: server.app.models["small"].batcher._queue.qsize() == len(levels) - 1)
        server.engine.released.set()
        answers = [future.result(120) for future in found]
    assert server.engine.batches == [1, 4]  # the first one ran alone, the others waited and ran together
    expected = [small_recalibrated(server, level) for level in levels]
    assert np.allclose(answers, expected, atol=1e-5)


def small_recalibrated(server: Any, level: int) -> float:
    classifier = server.app.models["small"].classifier
    probabilities, _ = classifier.predict_tensors(np.full((1, 128, 128, 3), level, np.uint8))
    return float(probabilities[0, 1])

"""The Open Inference Protocol, version 2, as Triton, KServe and OpenVINO Model Server speak it over HTTP.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md, with Triton's
extensions for binary data and for classification (docs/protocol in triton-inference-server/server).

The one input is `images`: `BYTES [n]`, each a whole JPEG, PNG or other file that edgecls reads, or
`UINT8 [n, h, w, 3]`, RGB pictures of any size. In JSON the elements of BYTES are base64. The outputs are
`probabilities`, `FP32 [n, classes]`, and `labels`, `BYTES [n]`; with the parameter `classification: k` either becomes
`BYTES [n, k]` of `value:index:label`.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from edgecls.manifest import Manifest
from edgecls.runtime.pipeline import Encoded, Frame, Picture
from edgecls.serve.batcher import Answer

INPUT: Final = "images"
OUTPUTS: Final = ("probabilities", "labels")
HEADER_LENGTH: Final = "Inference-Header-Content-Length"

OutputName = Literal["probabilities", "labels"]


class BadRequest(Exception):
    """A request that the protocol, or we, do not allow; the message says what was expected."""


@dataclass(frozen=True)
class WantedOutput:
    """One output that a request asks for.

    Attributes:
        classification: number of best classes in place of the output itself; 0 for that.
        is_binary: whether it stands behind the JSON header.
    """

    name: OutputName
    classification: int = 0
    is_binary: bool = False


@dataclass(frozen=True)
class InferRequest:
    """A request, checked.

    Attributes:
        id: given back as it came; None where there was none.
    """

    id: str | None
    pictures: tuple[Picture, ...]
    outputs: tuple[WantedOutput, ...]


def metadata(name: str, manifest: Manifest) -> dict[str, Any]:
    """What `GET /v2/models/NAME` says."""
    return {
        "name": name,
        "versions": ["1"],
        "platform": "edgecls",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(manifest.labels)]},
            {"name": "labels", "datatype": "BYTES", "shape": [-1]},
        ],
    }


def parse(body: bytes, header_length: str | None, max_images: int) -> InferRequest:
    """Read a request.

    Args:
        header_length: what the header `Inference-Header-Content-Length` says; None where it is not there.

    Raises:
        BadRequest: it is not one, or has too many pictures.
    """
    length = len(body)
    if header_length is not None:
        is_number = header_length.isascii() and header_length.isdigit() and len(header_length) <= 12
        if not is_number or int(header_length) > len(body):
            raise BadRequest(f"{HEADER_LENGTH}: expected the bytes of the JSON part, {len(body)} at most")
        length = int(header_length)
    try:
        asked = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body is not JSON") from error
    if not isinstance(asked, dict):
        raise BadRequest("expected a JSON object with `inputs`")
    parameters = _parameters(asked)
    inputs = asked.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise BadRequest(f"inputs: expected a list of one object, the input `{INPUT}`")
    pictures = _pictures(inputs[0], body[length:], max_images)
    request_id = asked.get("id")
    if not isinstance(request_id, str | None):
        raise BadRequest("id: expected a string")
    outputs = tuple(_outputs(asked.get("outputs"), bool(parameters.get("binary_data_output"))))
    return InferRequest(request_id, pictures, outputs)


def _parameters(of: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = of.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise BadRequest("parameters: expected an object")
    return parameters


def _pictures(given: Mapping[str, Any], behind: bytes, max_images: int) -> tuple[Picture, ...]:
    name, datatype, shape = given.get("name"), given.get("datatype"), given.get("shape")
    if name != INPUT:
        raise BadRequest(f"input {name!r}: expected `{INPUT}`")
    if not isinstance(shape, list) or not all(type(each) is int and 0 < each < 1 << 31 for each in shape):
        raise BadRequest("shape: expected a list of whole numbers above 0")
    expected = {"BYTES": 1, "UINT8": 4}.get(str(datatype))
    if expected is None:
        raise BadRequest(f"datatype {datatype!r}: expected BYTES with encoded pictures, or UINT8 with RGB pixels")
    if len(shape) != expected or (datatype == "UINT8" and shape[3] != 3):
        raise BadRequest(f"shape {shape}: expected {'[n]' if datatype == 'BYTES' else '[n, height, width, 3]'}")
    if shape[0] > max_images:
        raise BadRequest(f"shape {shape}: expected {max_images} pictures at most")
    size = _parameters(given).get("binary_data_size")
    if size is None and behind:
        raise BadRequest("there are bytes behind the JSON part, and the input has no parameter binary_data_size")
    if size is not None and (type(size) is not int or size != len(behind)):
        raise BadRequest(f"binary_data_size {size}: there are {len(behind)} bytes behind the JSON part")
    if datatype == "BYTES":
        files = list(_elements(behind) if size is not None else _from_base64(given.get("data")))
        if len(files) != shape[0]:
            raise BadRequest(f"shape {shape}: there are {len(files)} elements")
        return tuple(Encoded(str(number), file) for number, file in enumerate(files))
    pixels = _pixels(given.get("data"), shape) if size is None else _binary_pixels(behind, shape)
    return tuple(Frame(str(number), each) for number, each in enumerate(pixels))


def _elements(data: bytes) -> Iterator[bytes]:
    """Elements of BYTES in binary form: each with its length in 4 bytes, little end first."""
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise BadRequest("BYTES: the last length is cut off")
        (length,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + length > len(data):
            raise BadRequest(f"BYTES: an element of {length} bytes is cut off")
        yield data[at : at + length]
        at += length


def _from_base64(data: object) -> Iterator[bytes]:
    if not isinstance(data, list):
        raise BadRequest("data: expected a list of base64 strings, or binary data")
    for each in data:
        try:
            yield base64.b64decode(each, validate=True)
        except (TypeError, ValueError, binascii.Error) as error:
            raise BadRequest("data: an element is not base64") from error


def _pixels(data: object, shape: Sequence[int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        values = np.array(data)
        if values.dtype.kind not in "iu" or values.size != np.prod(shape, dtype=np.float64):
            raise ValueError
        if values.min() < 0 or values.max() > 255:
            raise ValueError
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BadRequest(f"data: expected whole numbers from 0 to 255 in the shape {list(shape)}") from error
    return values.astype(np.uint8).reshape(shape)


def _binary_pixels(data: bytes, shape: Sequence[int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    expected = int(shape[0]) * int(shape[1]) * int(shape[2]) * 3
    if len(data) != expected:
        raise BadRequest(f"shape {list(shape)}: takes {expected} bytes, and there are {len(data)}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _outputs(asked: object, is_binary: bool) -> Iterator[WantedOutput]:
    if asked is None or asked == []:
        yield from (WantedOutput("probabilities", 0, is_binary), WantedOutput("labels", 0, is_binary))
        return
    if not isinstance(asked, list) or not all(isinstance(each, dict) for each in asked):
        raise BadRequest("outputs: expected a list of objects")
    names = [str(each.get("name")) for each in asked]
    if len(set(names)) < len(names):  # thousands of the same would take gigabytes
        raise BadRequest("outputs: one is named twice; expected each once")
    for each in asked:
        if each.get("name") not in OUTPUTS:
            raise BadRequest(f"output {each.get('name')!r}: expected one of {', '.join(OUTPUTS)}")
        parameters = _parameters(each)
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise BadRequest("classification: expected a whole number of 0 or more")
        yield WantedOutput(each["name"], classes, bool(parameters.get("binary_data", is_binary)))


def response(
    name: str, request: InferRequest, answers: Sequence[Answer], labels: Sequence[str]
) -> tuple[bytes, int | None]:
    """The body of the answer, and the bytes of its JSON part where binary data follow it, else None.

    Args:
        answers: one for each picture, none of them an error.
    """
    rows = [each.probabilities for each in answers if each.probabilities is not None]
    probabilities = np.stack(rows).astype("<f4")
    outputs, behind = [], []
    for wanted in request.outputs:
        if wanted.classification:
            output, data = _classified(wanted, probabilities, labels)
        elif wanted.name == "labels":
            output, data = _texts(wanted.name, [each.prediction.label for each in answers], [len(answers)])
        else:
            output = {"name": wanted.name, "datatype": "FP32", "shape": list(probabilities.shape)}
            output["data"], data = probabilities.ravel().tolist(), probabilities.tobytes()
        if wanted.is_binary:
            output.pop("data")
            output["parameters"] = {"binary_data_size": len(data)}
            behind.append(data)
        outputs.append(output)
    told: dict[str, Any] = {"model_name": name, "model_version": "1", "outputs": outputs}
    if request.id is not None:
        told["id"] = request.id
    header = json.dumps(told).encode()
    return header + b"".join(behind), len(header) if behind else None


def _classified(
    wanted: WantedOutput, probabilities: np.ndarray[Any, np.dtype[np.float32]], labels: Sequence[str]
) -> tuple[dict[str, Any], bytes]:
    k = min(wanted.classification, len(labels))
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    texts = [
        f"{row[index]:.6f}:{index}:{labels[index]}"
        for row, best in zip(probabilities, order, strict=True)
        for index in best
    ]
    return _texts(wanted.name, texts, [len(probabilities), k])


def _texts(name: str, texts: Sequence[str], shape: list[int]) -> tuple[dict[str, Any], bytes]:
    encoded = [text.encode("utf-8", "replace") for text in texts]
    data = b"".join(struct.pack("<I", len(each)) + each for each in encoded)
    return {"name": name, "datatype": "BYTES", "shape": shape, "data": list(texts)}, data

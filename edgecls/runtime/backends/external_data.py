"""Weights that an ONNX file keeps in other files: which, and that none of them is somebody else's.

Of the engines ONNX Runtime refuses a path that leads out of the model's folder; OpenVINO, given the bytes of a model,
opens whatever the path names and takes it for weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from edgecls.errors import RunError
from edgecls.runtime.backends.onnx_manifest import fields_of

_LOCATION: Final = b"location"
_EXTERNAL_DATA: Final = 13  # of TensorProto, in onnx.proto; as all numbers here

# Where tensors are: message -> field number -> the message in it
_WITHIN: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}


def check_external_data(model: bytes, file: Path) -> bool:
    """Whether a model keeps weights in other files. Costs a search for one word where it does not, which is the rule.

    Args:
        model: the bytes of `file`.

    Raises:
        RunError: one of them is not named by a plain name, is none, or is a link that leads out of the folder.
    """
    if _LOCATION not in model:
        return False
    try:
        locations = sorted(set(_locations(memoryview(model), "model")))
    except (ValueError, IndexError, RecursionError) as error:
        raise RunError(f"{file}: not an ONNX file, or a damaged one; expected one of edgecls export") from error
    for location in locations:
        _check(location, file)
    return bool(locations)


def _check(location: str, file: Path) -> None:
    if location in ("", ".", "..") or any(mark in location for mark in "/\\:\0"):
        raise RunError(
            f"{file}: says that its weights are in {location!r}; expected the plain name of a file beside it. It was "
            "not opened; get a copy of the model with its weights inside"
        )
    beside = file.parent / location
    if not os.path.isfile(beside):
        raise RunError(f"{file}: its weights are in {location!r}, which is no file beside it; copy both together")
    if beside.resolve().parent != file.parent.resolve():
        raise RunError(
            f"{file}: its weights are in {location!r}, a link that leads to {beside.resolve()}, out of the folder. It "
            "was not opened; put the file itself beside the model"
        )


def _locations(message: memoryview, kind: str) -> Iterator[str]:
    """Every file that a tensor in this message names."""
    within = _WITHIN.get(kind, {})
    for number, content in fields_of(message):
        if kind == "tensor" and number == _EXTERNAL_DATA:
            entry = dict(fields_of(content))
            if bytes(entry.get(1, b"")) == _LOCATION:
                yield bytes(entry.get(2, b"")).decode(errors="replace")
        elif number in within and _LOCATION in bytes(content):
            yield from _locations(content, within[number])

"""What `GET /openapi.json` says: the addresses in the form that tools read (https://spec.openapis.org/oas/v3.1.0)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgecls import __version__

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_MODEL: Json = {"$ref": "#/components/parameters/model"}
_TENSOR: Json = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": _TEXT,
        "datatype": {"enum": ["BYTES", "UINT8", "FP32"]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "parameters": {"type": "object"},
        "data": {"type": "array", "items": {}},
    },
}
_ROW: Json = {
    "type": "object",
    "description": "As a line of `edgecls predict --format jsonl`; --top-k adds label_2, probability_2 and so on.",
    "required": ["path", "status", "label", "probability", "reason"],
    "properties": {
        "path": {"type": "string", "description": "The number of the picture in the request."},
        "status": {"enum": ["ok", "error"]},
        "label": {"type": ["string", "null"]},
        "probability": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "reason": {"type": ["string", "null"], "description": "Why the picture could not be read."},
    },
}
_SCHEMAS: Json = {
    "Error": {"type": "object", "required": ["error"], "properties": {"error": _TEXT}},
    "Tensor": _TENSOR,
    "Row": _ROW,
    "Predictions": {
        "type": "object",
        "required": ["predictions"],
        "properties": {"predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Row"}}},
    },
    "InferRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": _TEXT,
            "parameters": {"type": "object"},
            "inputs": {
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": {"$ref": "#/components/schemas/Tensor"},
                "description": "`images`: BYTES [n] of whole files in base64, or UINT8 [n, height, width, 3], RGB.",
            },
            "outputs": {
                "type": "array",
                "items": {"type": "object", "required": ["name"]},
                "description": "`probabilities`, `labels` or both; classification: k gives value:index:label.",
            },
        },
    },
    "InferResponse": {
        "type": "object",
        "required": ["model_name", "outputs"],
        "properties": {
            "model_name": _TEXT,
            "model_version": _TEXT,
            "id": _TEXT,
            "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
        },
    },
}
_FAILURES: Json = {
    "400": "The request is not understood, or has too many pictures.",
    "401": "The key is missing or wrong.",
    "404": "No model of this name.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is compressed.",
    "503": "The queue is full; Retry-After says when to come again.",
    "504": "The request waited too long.",
}


def described(models: Sequence[str], *, has_key: bool) -> Json:
    """The document.

    Args:
        models: their names, the one that `/predict` asks first.
        has_key: whether requests must bring one.
    """
    picture: Json = {"schema": {"type": "string", "format": "binary"}}
    pictures: Json = {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}}
    several: Json = {"type": "object", "required": ["images"], "properties": {"images": pictures}}
    form: Json = {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
    bodies: Json = {
        **dict.fromkeys(("image/jpeg", "image/png", "image/webp", "application/octet-stream"), picture),
        "multipart/form-data": {"schema": form},
        "application/json": {"schema": several},
    }
    predict = _post("Label pictures.", bodies, "Predictions")
    unreadable: Json = {"application/json": _of("Predictions")}
    predict["responses"]["422"] = {"description": "None of the pictures could be read.", "content": unreadable}
    infer = _post("Infer, by the Open Inference Protocol.", {"application/json": _of("InferRequest")}, "InferResponse")
    paths: Json = {
        "/predict": {"post": {**predict, "operationId": "predict"}},
        "/predict/{model}": _with_model("post", predict, "predictWith"),
        "/v2": {"get": _get("The server and what it can do.", "server")},
        "/v2/health/live": {"get": _get("Whether the server runs.", "live", is_open=True)},
        "/v2/health/ready": {"get": _get("Whether it takes requests.", "ready", is_open=True)},
        "/v2/models/{model}": _with_model("get", _get("Inputs and outputs of a model."), "metadata"),
        "/v2/models/{model}/ready": _with_model("get", _get("Whether a model is ready.", is_open=True), "modelReady"),
        "/v2/models/{model}/infer": _with_model("post", infer, "infer"),
        "/v2/repository/index": {"post": _get("The models that are served.", "index")},
        "/v2/repository/models/{model}/load": _with_model(
            "post",
            _get("Load a model anew from where it was loaded, and let it take the place of the old one."),
            "load",
        ),
        "/metrics": {
            "get": {**_get("Figures for Prometheus.", "metrics"), "responses": _responses({"text/plain": {}})}
        },
    }
    parameter: Json = {"name": "model", "in": "path", "required": True, "schema": {"enum": list(models)}}
    key: Json = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "edgecls serve", "version": __version__},
        "paths": paths,
        "components": {"schemas": _SCHEMAS, "parameters": {"model": parameter}, "securitySchemes": key},
        **({"security": [{"bearer": []}, {"key": []}]} if has_key else {}),
    }


def _of(schema: str) -> Json:
    return {"schema": {"$ref": f"#/components/schemas/{schema}"}}


def _responses(content: Json, failures: Json | None = None) -> Json:
    failed = {
        status: {"description": words, "content": {"application/json": _of("Error")}}
        for status, words in (failures or {}).items()
    }
    return {"200": {"description": "The answer.", "content": content}, **failed}


def _post(summary: str, bodies: Json, answer: str, failures: Json | None = None) -> Json:
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": bodies},
        "responses": _responses({"application/json": _of(answer)}, {**_FAILURES, **(failures or {})}),
    }


def _get(summary: str, operation: str = "", *, is_open: bool = False) -> Json:
    told: Json = {"summary": summary, "responses": _responses({"application/json": {}}, {"401": _FAILURES["401"]})}
    if is_open:
        told["responses"] = _responses({"application/json": {}})
        told["responses"]["503"] = {"description": "The server ends.", "content": {"application/json": {}}}
    return {**told, **({"operationId": operation} if operation else {}), **({"security": []} if is_open else {})}


def _with_model(method: str, operation: Json, name: str) -> Json:
    gone = _responses({}, {"404": _FAILURES["404"]})["404"]
    responses = {**operation["responses"], "404": gone}
    if name == "load":
        responses["400"] = _responses({}, {"400": "It was not loaded, and the one before goes on."})["400"]
    return {"parameters": [_MODEL], method: {**operation, "operationId": name, "responses": responses}}

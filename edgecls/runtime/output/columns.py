"""A prediction as the named cells of a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edgecls.runtime.prediction import Prediction


def columns(top_k: int, members: Sequence[str] = ()) -> list[str]:
    """Names of the columns, in order."""
    runners_up = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "probability")]
    votes = ["agreement", "entropy", *members] if members else []
    return ["path", "status", "label", "probability", "reason", *runners_up, *votes]


def row(prediction: Prediction, members: Sequence[str] = ()) -> dict[str, Any]:
    """A prediction by column name; probabilities are rounded to six digits, None for an error."""
    values: dict[str, Any] = {
        "path": prediction.path,
        "status": prediction.status,
        "label": prediction.label or None,
        "probability": _rounded(prediction.probability),
        "reason": prediction.reason or None,
    }
    for rank, (label, probability) in enumerate(prediction.top[1:], start=2):
        values[f"label_{rank}"] = label
        values[f"probability_{rank}"] = _rounded(probability)
    if prediction.agreement is not None and prediction.entropy is not None:
        values["agreement"] = _rounded(prediction.agreement)
        values["entropy"] = _rounded(prediction.entropy)
        values.update(zip(members, prediction.members, strict=True))
    return values


def _rounded(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None

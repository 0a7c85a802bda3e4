"""What `/metrics` tells, in Prometheus' form: counts of requests and pictures, the queues, the stages, the answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from edgecls.drift import FEATURES, Drift, Feature
from edgecls.serve.batcher import Batch

_MILLISECONDS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
_CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Figures:
    """The figures of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "edgecls_requests_total", "Requests by address and status.", ["path", "status"], registry=registry
        )
        self._seconds = Histogram(
            "edgecls_request_seconds", "Time of a request that was answered.", ["path"], registry=registry
        )
        self._found: dict[tuple[Any, ...], Any] = {}
        self._loads = Counter(
            "edgecls_loads_total", "Times that a model was loaded anew, or could not be.", ["model", "result"],
            registry=registry,
        )  # fmt: skip
        self._images = Counter(
            "edgecls_images_total", "Pictures by what became of them.", ["model", "status"], registry=registry
        )
        self._answers = Counter("edgecls_answers_total", "Answers by label.", ["model", "label"], registry=registry)
        self._confidence = Histogram(
            "edgecls_confidence", "Probability of the best label.", ["model"], buckets=_CONFIDENCES, registry=registry
        )
        self._batch = Histogram(
            "edgecls_batch_images", "Pictures of a batch.", ["model"], buckets=_SIZES, registry=registry
        )
        self._waited = Histogram(
            "edgecls_queue_ms", "Milliseconds that a picture waited.", ["model"], buckets=_MILLISECONDS,
            registry=registry,
        )  # fmt: skip
        self._stages = Histogram(
            "edgecls_stage_ms", "Milliseconds of a picture by stage.", ["model", "stage"], buckets=_MILLISECONDS,
            registry=registry,
        )  # fmt: skip
        self._drift = Gauge(
            "edgecls_drift_psi", "Population stability index of the last pictures against the validation images.",
            ["model", "feature"], registry=registry,
        )  # fmt: skip
        self._waiting = Gauge("edgecls_queue_images", "Pictures that wait now.", ["model"], registry=registry)

    def watch(self, model: str, n_waiting: Callable[[], int], drift: Callable[[], Drift | None]) -> None:
        """Tell the length of a model's queue, and how far its last pictures are from its validation images: NaN where
        that is not known."""
        self._waiting.labels(model).set_function(n_waiting)

        def psi(feature: Feature) -> float:
            now = drift()
            return now.features[feature].psi if now and feature in now.features else math.nan

        for feature in FEATURES:
            self._drift.labels(model, feature).set_function(partial(psi, feature))

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request by its address and what became of it."""
        self._of(self._requests, path, str(status)).inc()
        if status == 200:
            self._of(self._seconds, path).observe(seconds)

    def count_load(self, model: str, result: str) -> None:
        """Count an attempt to load a model anew."""
        self._of(self._loads, model, result).inc()

    def count_batch(self, model: str, batch: Batch) -> None:
        """Count what a worker has done."""
        self._of(self._batch, model).observe(len(batch.predictions))
        waited, confidence = self._of(self._waited, model), self._of(self._confidence, model)
        for ms in batch.waited_ms:
            waited.observe(ms)
        for stage, ms in batch.stages_ms.items():
            self._of(self._stages, model, stage).observe(ms)
        for prediction in batch.predictions:
            self._of(self._images, model, prediction.status).inc()
            if prediction.label:
                self._of(self._answers, model, prediction.label).inc()
                confidence.observe(prediction.probability)

    def _of(self, figure: MetricWrapperBase, *labels: str) -> Any:
        """The figure with these labels: finding it takes longer than counting, so what was found is kept."""
        key = (figure, *labels)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = figure.labels(*labels)
        return found

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self._registry)

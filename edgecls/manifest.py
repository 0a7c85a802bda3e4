"""What a model file must say about itself to be trusted: labels, preprocessing, provenance.

The manifest is `manifest.json` in a run folder and the same JSON in the metadata of every ONNX file
(key `METADATA_KEY`), so a lone model file predicts with the right labels and the right pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import datetime, timezone
from functools import cached_property
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Final, Literal, TypeVar, get_args, get_type_hints

from edgecls import __version__
from edgecls.errors import RunError
from edgecls.names import is_text
from edgecls.records import check_kinds, json_object, json_text, kind_of

SCHEMA: Final = 1
METADATA_KEY: Final = "edgecls.manifest"

Resize = Literal["shortest", "squash", "pad"]
Interpolation = Literal["bilinear", "bicubic", "area"]
Precision = Literal["fp32", "fp16", "int8", "int8-cpu"]
Origin = Literal["trained", "published", "adopted"]
Head = Literal["network", "logistic", "svm", "random-forest", "boosting", "xgboost"]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
_ORIGINS: Final = {"adopted": "adopted", "pretrained": "published"}  # by what older manifests had in `training`
_MOST: Final = 1e6  # of a mean or std: float32 has no place for much more

CURE: Final = "the file is damaged or was changed by hand: put back a copy of it, or make the run again"


@dataclass(frozen=True)
class Preprocessing:
    """How a decoded picture becomes the model's input; `images.py` is the code that obeys it.

    Attributes:
        size_hw: height and width of the model's input in pixels.
        resize: `shortest` keeps the aspect ratio and covers the crop; `squash` does not keep it; `pad` keeps it, shows
            the whole picture and fills the rest with `background`.
        crop_fraction: share of the resized picture that the centre crop keeps, in (0, 1]; 224 of 256 is 0.875.
        interpolation: `bilinear` or `bicubic` below a two-fold shrink and the box filter from there on,
            so that large pictures are antialiased; `area` is the box filter at every shrink.
        mean, std: per RGB channel, for pixels scaled to 0..1; they are inside the exported graph.
        background: RGB that transparent pixels are composited on, and that `pad` fills with.
    """

    size_hw: tuple[int, int] = (224, 224)
    resize: Resize = "shortest"
    crop_fraction: float = 0.875
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    background: tuple[int, int, int] = (255, 255, 255)

    def __post_init__(self) -> None:
        for name in ("size_hw", "mean", "std", "background"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON gives lists
        if len(self.size_hw) != 2 or not all(isinstance(s, int) and 1 <= s <= 4096 for s in self.size_hw):
            raise RunError(f"image size {self.size_hw}: expected two whole numbers of pixels from 1 to 4096")
        if not 0 < self.crop_fraction <= 1:
            raise RunError(f"crop fraction {self.crop_fraction}: expected a number above 0 and at most 1")
        if self.resize not in get_args(Resize):
            raise RunError(f"resize rule {self.resize!r}: expected one of {', '.join(get_args(Resize))}")
        if self.interpolation not in get_args(Interpolation):
            raise RunError(
                f"interpolation {self.interpolation!r}: expected one of {', '.join(get_args(Interpolation))}"
            )
        if not (len(self.mean) == len(self.std) == len(self.background) == 3 and all(s > 0 for s in self.std)):
            raise RunError("mean, std and background: expected three numbers each (RGB), std above 0")
        if not all(-_MOST < value < _MOST for value in (*self.mean, *self.std)):  # nan is not, either
            raise RunError(f"mean {self.mean} and std {self.std}: expected finite numbers, for pixels scaled to 0..1")
        if not all(0 <= value <= 255 for value in self.background):
            raise RunError(f"background {self.background}: expected three whole numbers from 0 to 255 (RGB)")

    @cached_property
    def covered_hw(self) -> tuple[int, int]:
        """The height and width that the resized (and padded) picture has at least, before the centre crop."""
        height, width = (math.floor(side / self.crop_fraction + 1e-6) for side in self.size_hw)
        return height, width


@dataclass(frozen=True)
class Manifest:
    """What a run, or one model file of it, is.

    Attributes:
        labels: class names in the order of the logits; unique.
        preprocessing: how pictures become its input.
        model: architecture name as `edgecls train --model` takes it.
        precision: of the file that carries this manifest; a run folder's own says `fp32`.
        label_ids: where labels have a published identifier (ImageNet's WordNet ids), one each, in the order of
            `labels`; class folders may be named by it.
        temperature: what the logits are divided by before they become probabilities; above 0. Answers do not
            depend on it, only how sure they claim to be (arXiv 1706.04599).
        origin: what made it: a training, published weights as they are, or somebody else's ONNX file.
        head: what answers from the features: the network itself, or a scikit-learn classifier.
        training: the options and the data that made it, as JSON values, to be read by people.
        metrics: measured figures by name, and `parameters` of the network; accuracies are fractions.
        files: sha256 by file name, for the files of the run folder.
        created: ISO 8601, UTC.
    """

    labels: tuple[str, ...]
    preprocessing: Preprocessing
    model: str
    precision: Precision = "fp32"
    label_ids: tuple[str, ...] = ()
    temperature: float = 1.0
    origin: Origin = "trained"
    head: Head = "network"
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    edgecls: str = __version__
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "label_ids", tuple(self.label_ids))
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise RunError(f"manifest labels: expected two or more different names, got {list(self.labels)[:5]}")
        if not all(isinstance(label, str) and label for label in self.labels):
            raise RunError("manifest labels: expected non-empty names")
        foreign = [label for label in (*self.labels, *self.label_ids) if not is_text(label)]
        if foreign:
            raise RunError(f"manifest labels: {foreign[0]!a} is not UTF-8, so it could not be read back; rename it")
        if self.label_ids and len(set(self.label_ids)) != len(self.labels):
            raise RunError(f"manifest label_ids: expected {len(self.labels)} different ones, got {len(self.label_ids)}")
        if not (isinstance(self.temperature, (int, float)) and 0 < self.temperature < math.inf):
            raise RunError(f"manifest temperature {self.temperature!r}: expected a number above 0")
        for name, known in (("precision", Precision), ("origin", Origin), ("head", Head)):
            if getattr(self, name) not in get_args(known):
                raise RunError(f"manifest {name} {getattr(self, name)!r}: expected one of {', '.join(get_args(known))}")
        if self.schema != SCHEMA:
            raise RunError(
                f"manifest schema {self.schema}: this edgecls ({__version__}) reads schema {SCHEMA}; "
                f"the file was written by edgecls {self.edgecls}, use that version or export again"
            )

    def to_json(self) -> str:
        return json_text(asdict(self))

    @classmethod
    def from_json(cls, text: str, source: str) -> Manifest:
        """Read a manifest back, strictly.

        Args:
            text: JSON as `to_json` writes it.
            source: where the text came from, for messages.

        Raises:
            RunError: not JSON, a field missing, unknown or of the wrong kind, another schema.
        """
        values = json_object(text, f"{source}: the manifest", RunError, CURE)
        if "preprocessing" not in values:
            raise RunError(f"{source}: not an edgecls manifest: no 'preprocessing' in it")
        schema = values.get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise RunError(f"{source}: manifest schema {schema}, this edgecls reads {SCHEMA}: upgrade edgecls")
        try:
            values["preprocessing"] = _strict(Preprocessing, values["preprocessing"])
            return _strict(cls, {**_told_by_training(values.get("training")), **values})
        except (TypeError, RunError) as error:
            raise RunError(f"{source}: damaged manifest: {error}; {CURE}") from error


def without_places(values: Any) -> Any:
    """JSON values with the last part alone of every absolute path in them: where it lies is nobody else's business."""
    if isinstance(values, Mapping):
        return {name: without_places(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [without_places(value) for value in values]
    if isinstance(values, str):
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(values).is_absolute():
                return kind(values).name
    return values


def _told_by_training(training: Any) -> dict[str, Any]:
    """The origin and the head of a manifest from before they had fields of their own."""
    if not isinstance(training, dict):
        return {}
    origin = next((name for key, name in _ORIGINS.items() if key in training), "trained")
    return {"origin": origin, "head": training.get("classifier") or "network"}


_T = TypeVar("_T")


def _strict(cls: type[_T], values: Any) -> _T:
    name = cls.__name__.lower()
    if not isinstance(values, dict):
        raise RunError(f"{name}: expected an object, got {kind_of(values)}")
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise RunError(f"unknown {name} fields {unknown}; written by a newer edgecls?")
    missing = [n for n, f in known.items() if n not in values and f.default is f.default_factory is MISSING]
    if missing:
        raise RunError(f"no {', '.join(missing)} in it")
    check_kinds(values, get_type_hints(cls), RunError)
    return cls(**values)

"""edgecls: from a folder of labelled photos to a classifier on the device, with nothing lost on the way.

with edgecls.Classifier.open("runs/latest") as classifier:
    for prediction in classifier.predict(["photo.jpg"]):
        print(prediction.label, prediction.probability)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecls.manifest import Manifest, Preprocessing
    from edgecls.runtime.classifier import Classifier
    from edgecls.runtime.prediction import Prediction

__version__ = "0.1.0"
__all__ = ["Classifier", "Manifest", "Prediction", "Preprocessing", "__version__"]

_HOMES = {
    "Classifier": "edgecls.runtime.classifier",
    "Manifest": "edgecls.manifest",
    "Prediction": "edgecls.runtime.prediction",
    "Preprocessing": "edgecls.manifest",
}


def __getattr__(name: str) -> Any:
    # loaded on first use: OpenCV and NumPy cost 0.2 s, which `edgecls --help` need not pay
    if name not in _HOMES:
        raise AttributeError(f"module 'edgecls' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

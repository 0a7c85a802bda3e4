"""What to serve, where, and how much at a time: `--help` needs neither Starlette nor NumPy for it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edgecls.options import Options, Rule, above, at_least, between, option
from edgecls.runs import LATEST
from edgecls.runtime.options import ClassifierOptions

API_KEY: Final = "EDGECLS_API_KEY"

_SECONDS: Final = above(0, most=86_400)
_NAME: Final = Rule(lambda name: re.fullmatch(r"[\w.-]+", name) is not None, "letters, digits, and any of _ . -")


@dataclass(frozen=True)
class LimitOptions(Options):
    """Limits, which are checked before anything is decoded."""

    queue: int = option(
        256,
        "Pictures that may wait. Beyond it a request is answered 503 at once, and may come again.",
        rule=at_least(1),
    )
    timeout: float = option(10.0, "Seconds after which a request that still waits is answered 504.", rule=_SECONDS)
    max_body_mb: float = option(
        32.0, "Largest body of a request in MB; a larger one is answered 413.", rule=above(0, most=100_000)
    )
    max_images: int = option(64, "Most pictures of one request.", rule=at_least(1))
    body_timeout: float = option(20.0, "Seconds in which a request must have arrived whole.", rule=_SECONDS)


@dataclass(frozen=True)
class ServeOptions(Options):
    """All options of `edgecls serve`."""

    model: str = option(LATEST, "A run folder, a bundle, an ONNX file or an engine.")
    host: str = option("127.0.0.1", "Address to listen on. 0.0.0.0 is reachable from other machines.")
    port: int = option(8000, "Port to listen on; 0 takes a free one.", rule=between(0, 65535))
    name: str = option("model", "What the model is called in the addresses of the Open Inference Protocol.", rule=_NAME)
    top_k: int = option(1, "How many labels a row of /predict has, best first.", rule=at_least(1))
    max_wait_ms: float = option(
        0.0,
        "How long a picture may wait for others that fill its batch. 0 takes at once what waits.",
        rule=between(0, 60_000),
    )
    api_key_file: Path | None = option(
        None, "A file with the key that requests must bring.", shown=f"the variable {API_KEY}, else no key is needed"
    )
    classifier: ClassifierOptions = field(default_factory=ClassifierOptions)
    limits: LimitOptions = field(default_factory=LimitOptions)

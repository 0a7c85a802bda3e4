"""What to serve, where, and how much at a time: `--help` needs neither Starlette nor NumPy for it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from edgecls.errors import OptionError
from edgecls.options import Options, Rule, above, at_least, between, expect, option
from edgecls.runs import LATEST
from edgecls.runtime.options import ClassifierOptions

API_KEY: Final = "EDGECLS_API_KEY"

_DEFAULT_NAME: Final = "model"
_SECONDS: Final = above(0, most=86_400)
_NAME: Final = Rule(
    lambda name: re.fullmatch(r"\w[\w.-]*", name) is not None, "letters, digits, and any of _ . - behind the first"
)


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

    model: str | None = option(
        None,
        "The model that /predict asks: a run folder, a bundle, an ONNX file, an engine, or the folder of an ensemble.",
        shown=f"the first --model, else {LATEST}",
        flag="default_model",
    )
    models: tuple[str, ...] = option(
        (),
        "NAME=MODEL: one more model, at /predict/NAME and /v2/models/NAME. Repeat the flag for several.",
        flag="model",
        repeat=True,
    )
    host: str = option("127.0.0.1", "Address to listen on. 0.0.0.0 is reachable from other machines.")
    port: int = option(8000, "Port to listen on; 0 takes a free one.", rule=between(0, 65535))
    name: str = option(_DEFAULT_NAME, "What the model that is given without a name is called in addresses.", rule=_NAME)
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

    def __post_init__(self) -> None:
        super().__post_init__()
        self.named  # noqa: B018  told at once, before anything is opened
        is_soon = self.max_wait_ms < 1000 * self.limits.timeout
        expect(is_soon, "max_wait_ms", self.max_wait_ms, f"less than --timeout, which is {self.limits.timeout:g} s")
        if self.name != _DEFAULT_NAME and self.models and not self.model:
            raise OptionError(f"--name {self.name}: names the model that is given without a name; there is none")

    @cached_property
    def named(self) -> dict[str, str]:
        """Which model answers to which name; the first one is the one that `/predict` asks.

        Raises:
            OptionError: one of `models` is not NAME=MODEL, or a name is there twice.
        """
        found = {self.name: self.model or LATEST} if self.model or not self.models else {}
        for each in self.models:
            name, equals, place = each.partition("=")
            expect(
                bool(equals and place and _NAME.holds(name)), "model", each, f"NAME=MODEL; a name has {_NAME.expected}"
            )
            if name in found:
                raise OptionError(f"--model {each}: the name {name} is given twice")
            found[name] = place
        return found

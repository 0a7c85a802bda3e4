"""How a model is named on the command line: one, several that vote, and what they are to be opened with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, get_origin

from edgecls.errors import OptionError
from edgecls.options import Flag, Options, flags_of, flat, from_flat
from edgecls.runs import members_of
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.options import ClassifierOptions, VoteOptions

_VOTE: Final = "+"
_SETTINGS: Final = "@"
_NO_SETTING: Final = "subsets"  # of a vote: each subset is a contestant of its own


@dataclass(frozen=True)
class Contestant:
    """One of the models that are compared.

    Attributes:
        name: as it was given.
        models: that vote; one alone answers for itself.
    """

    name: str
    models: tuple[str, ...]
    classifier: ClassifierOptions
    vote: VoteOptions

    @classmethod
    def parse(cls, text: str, classifier: ClassifierOptions, vote: VoteOptions) -> Contestant:
        """Read `runs/a+runs/b@precision=int8,tta=flip`; what is not said is as the options have it.

        Raises:
            OptionError: a setting that there is not, or a value that it does not take.
        """
        if Path(text).exists():  # whatever is in its name
            return cls(text, _members([text]), classifier, vote)
        names, _, settings = text.partition(_SETTINGS)
        models = _members([name for name in names.split(_VOTE) if name])
        if not models:
            raise OptionError(f"{text!r}: no model in it; name a run folder, an ONNX file or an engine")
        given = _settings(text, settings)
        own = from_flat(ClassifierOptions, {**flat(classifier), **_of(ClassifierOptions, given)}, text)
        of_vote = from_flat(VoteOptions, {**flat(vote), **_of(VoteOptions, given)}, text)
        return cls(text, models, own, of_vote if len(models) > 1 else VoteOptions())

    def open(self, on_note: Callable[[str], None] = lambda line: None) -> Classifier:
        """Open the models.

        Raises:
            As `Classifier.open`.
        """
        return Classifier.of(self.models, self.classifier, self.vote, on_note=on_note)


def expect_a_vote(contestants: Sequence[Contestant], vote: VoteOptions) -> None:
    """Refuse what is said of a vote where none of the contestants is one.

    Raises:
        OptionError: something is said, and each of them is a single model.
    """
    vote.expect_several(max(len(each.models) for each in contestants))


def _members(names: list[str]) -> tuple[str, ...]:
    return tuple(str(member) for name in names for member in members_of(name))


def _settings(text: str, settings: str) -> dict[str, str]:
    known = [flag.name for options in (ClassifierOptions, VoteOptions) for flag in flags_of(options)]
    known.remove(_NO_SETTING)
    found: dict[str, str] = {}
    name = ""
    for part in filter(None, settings.split(",")):
        key, sign, value = part.partition("=")
        if sign:
            name = key.strip().replace("-", "_")
            if name not in known:
                raise OptionError(f"{text}: no such setting: {key}; there are {', '.join(known)}")
            found[name] = value
        elif name:  # tta=flip,shifts
            found[name] += f",{part}"
        else:
            raise OptionError(f"{text}: {part!r} is no setting; write them as precision=int8,tta=flip")
    return found


def _of(options: type[Options], given: dict[str, str]) -> dict[str, Any]:
    """Those of the settings that belong to these options, as JSON values."""
    return {flag.name: _value(flag, given[flag.name]) for flag in flags_of(options) if flag.name in given}


def _value(flag: Flag, text: str) -> Any:
    if get_origin(flag.type) is tuple:
        return text.split(",")
    with suppress(ValueError):  # a number, true or false; all else is a word
        return json.loads(text)
    return text


def named(contestants: list[Contestant]) -> list[Contestant]:
    """The same with short names that tell them apart: of a path its last part, where that is enough."""
    shortened = [replace(each, name=_short(each.name)) for each in contestants]
    names = [each.name for each in shortened]
    return [
        short if names.count(short.name) == 1 else whole for short, whole in zip(shortened, contestants, strict=True)
    ]


def _short(text: str) -> str:
    names, sign, settings = text.partition(_SETTINGS) if not Path(text).exists() else (text, "", "")
    parts = [text] if Path(text).exists() else names.split(_VOTE)
    return _VOTE.join(Path(part).name or part for part in parts) + sign + settings

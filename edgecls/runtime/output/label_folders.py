"""Labels as names of folders: any text is one somewhere inside the folder it is for, and no two share one.

The folder may be copied to another system, so the rules are those of all: Windows keeps names such as `NUL`, drops dots
and spaces at the end and does not tell `Cat` from `cat`; macOS does not tell two Unicode forms of one letter.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Final

_FORBIDDEN: Final = re.compile(r'[<>:"/\\|?*]')
_UNWRITABLE: Final = ("Cc", "Cs", "Zl", "Zp")  # controls, lone surrogates, separators of lines
_DEVICES: Final = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    f"{port}{n}" for port in ("COM", "LPT") for n in "0123456789¹²³"
}
_MOST_BYTES: Final = 200  # file systems allow 255, and a number may come behind


def folder_names(labels: Iterable[str], reserved: Iterable[str] = ()) -> Mapping[str, str]:
    """A name for each label: itself where that will do, and never one of `reserved`.

    The same labels always give the same names: `a/b` is `a_b`, and `a_b-2` where another label is called `a_b`.
    """
    names: dict[str, str] = {}
    taken = {_compared(name) for name in reserved}
    for label in sorted(labels, key=lambda label: _safe(label) != label):  # those that will do keep their own
        name, number = _safe(label), 1
        while _compared(name) in taken:
            number += 1
            name = f"{_safe(label)}-{number}"
        taken.add(_compared(name))
        names[label] = name
    return names


def _safe(label: str) -> str:
    """The label with `_` for what no folder may be called by everywhere."""
    name = _FORBIDDEN.sub("_", "".join("_" if unicodedata.category(c) in _UNWRITABLE else c for c in label))
    name = name.encode()[:_MOST_BYTES].decode(errors="ignore").strip().rstrip(". ")
    if name.startswith("."):  # hidden, so that it would be passed over where the pictures are used
        name = f"_{name[1:]}"
    is_device = name.partition(".")[0].rstrip().upper() in _DEVICES
    return f"_{name}" if is_device or not name else name


def _compared(name: str) -> str:
    """What two names have in common that are one folder on some system."""
    return unicodedata.normalize("NFC", name).casefold()

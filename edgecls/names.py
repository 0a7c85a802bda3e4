"""Class names: the one form in which they are compared, and what cannot be a class name.

A name comes from folders, CSVs and label files of several systems: macOS writes `ä` as two characters where Linux and
Windows write one, and a space at an end is seen by nobody. So names are compared, and new ones kept, in one form.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

# str.strip() knows every space that is one; these are as invisible and are none: zero width, joiner, byte order mark
_OUTER: Final = re.compile(r"^[\s\u200b\u2060\ufeff]+|[\s\u200b\u2060\ufeff]+$")


def one_form(name: str) -> str:
    """The name in Unicode's composed form (NFC), without what is invisible at its ends."""
    return unicodedata.normalize("NFC", _OUTER.sub("", name))


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8: a file name in another encoding cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def fault_of(name: str) -> str | None:
    """Why a name cannot be a class's, or None: one that cannot be written and read back is found out in time."""
    if not is_text(name):
        return f"the name is not UTF-8 (its bytes are {ascii(name.encode(errors='surrogateescape'))[1:]})"
    label = one_form(name)
    if not label:
        return "the name has no visible character"
    controls = sorted({character for character in label if unicodedata.category(character) == "Cc"})
    if controls:
        return f"the name has control characters ({', '.join(map(ascii, controls))})"
    return None

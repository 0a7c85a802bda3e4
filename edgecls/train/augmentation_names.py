"""How training pictures may be varied, by name: operations, and presets of them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from edgecls.errors import OptionError

# in the order in which they are applied; augment.py says what each does
OPERATIONS: Final = (
    "crop", "shift", "rotate", "affine", "flip", "vflip", "colour", "grey", "blur", "trivial", "augmix",
)  # fmt: skip
PRESETS: Final[Mapping[str, tuple[str, ...]]] = {
    "none": (),
    "shift": ("shift",),
    "light": ("shift", "flip"),
    "standard": ("crop", "flip"),
    "trivial": ("crop", "flip", "trivial"),
    "augmix": ("crop", "flip", "augmix"),
}
_SPELLINGS: Final = {"color": "colour", "gray": "grey"}


def operations_of(names: Sequence[str]) -> tuple[str, ...]:
    """What these presets and operations do together, in the order of OPERATIONS.

    `trivial` and `augmix` are both: alone they come with crop and flip, beside other names they add themselves only, so
    that `shift,trivial` mirrors nothing.

    Raises:
        OptionError: no name, an unknown one, or none with others.
    """
    spelt = {_SPELLINGS.get(name, name) for name in names}
    known = (
        f"expected one of {', '.join(PRESETS)}, or operations: {', '.join(n for n in OPERATIONS if n not in PRESETS)}"
    )
    if not spelt:
        raise OptionError(f"--augment: no name is given; {known}")
    for name in spelt:
        if name not in PRESETS and name not in OPERATIONS:
            raise OptionError(f"--augment {name}: {known}")
    if "none" in spelt and len(spelt) > 1:
        raise OptionError(f"--augment {','.join(names)}: none goes with no other; leave it out")
    if len(spelt) == 1:
        (name,) = spelt
        chosen = set(PRESETS.get(name, (name,)))
    else:
        chosen = {part for name in spelt for part in ((name,) if name in OPERATIONS else PRESETS[name])}
    return tuple(name for name in OPERATIONS if name in chosen)

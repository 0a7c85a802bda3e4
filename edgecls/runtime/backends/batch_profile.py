"""How many images a batch of a TensorRT engine may have."""

from __future__ import annotations

from dataclasses import dataclass

from edgecls.errors import OptionError


@dataclass(frozen=True)
class BatchProfile:
    """How many images a batch may have: from `min` to `max`; `opt` is what the engine is made fast for."""

    min: int = 1
    opt: int = 16
    max: int = 64

    def __post_init__(self) -> None:
        sizes = (self.min, self.opt, self.max)
        if not (all(type(size) is int for size in sizes) and 1 <= self.min <= self.opt <= self.max):
            raise OptionError(
                f"--batch {self}: expected the smallest, usual and largest batch, rising, such as 1,16,64"
            )

    @classmethod
    def parse(cls, text: str) -> BatchProfile:
        """Read `1,16,64`.

        Raises:
            OptionError: not three rising whole numbers from 1.
        """
        try:
            smallest, usual, largest = (int(part) for part in text.split(","))
        except ValueError:
            raise OptionError(
                f"--batch {text}: expected three whole numbers, the smallest, usual and largest batch, such as 1,16,64"
            ) from None
        return cls(smallest, usual, largest)

    def __str__(self) -> str:
        return f"{self.min},{self.opt},{self.max}"

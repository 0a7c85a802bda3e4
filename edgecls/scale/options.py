"""The options of `edgecls plan` and `edgecls merge`: `--help` needs neither NumPy nor pyarrow for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgecls.errors import OptionError
from edgecls.options import Options, at_least, expect, option, required


@dataclass(frozen=True)
class PlanOptions(Options):
    """All options of `edgecls plan`."""

    source: str = required("A folder, or the address of one: s3://, gs://, hdfs:// or file://.")
    out: str | Path = option(
        "plan", "The folder to make for the plan and, later, the parts of the answer. An address of one in an object "
        "store (s3://, gs://) is taken too."
    )  # fmt: skip
    shards: int | None = option(
        None, "Number of shards.", shown="as many as --shard-size makes", rule=at_least(1)
    )  # fmt: skip
    shard_size: int = option(50_000, "Most inputs of a shard, where --shards is not given.", rule=at_least(1))

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(str(self.out) not in ("", "-"), "out", str(self.out), "a folder: a plan is several files")


@dataclass(frozen=True)
class MergeOptions(Options):
    """All options of `edgecls merge`."""

    plan: str | Path = required("The folder that edgecls plan made, or its address in an object store.")
    out: Path | None = option(
        None, "File for all rows, .csv, .jsonl or .parquet.", shown="the parts stay as they are, as one data set"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out and self.out.suffix.lower() not in (".csv", ".jsonl", ".parquet"):
            raise OptionError(f"--out {self.out}: expected a file name that ends in .csv, .jsonl or .parquet")

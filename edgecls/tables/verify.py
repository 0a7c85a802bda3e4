"""What `edgecls verify` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from edgecls.export.judge.verify import VerifyResult


def verified(result: VerifyResult) -> Table:
    title = f"Verify: {result.n_images} golden images, ONNX Runtime"
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE)
    table.add_column("file", no_wrap=True)
    table.add_column("backend", no_wrap=True)
    for name in ("logits off", "allowed", "same"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    for check in result.checks:
        ran = check.agreement == check.agreement  # nan where it did not
        table.add_row(
            check.file,
            check.backend.removeprefix("onnxruntime-"),
            f"{check.max_logit_difference:.2g}" if ran else "-",
            f"{check.allowed:.2g}",
            f"{check.agreement:.0%}" if ran else "-",
            "passed" if check.passed else "failed",
        )
    failed = [f"{check.file} on {check.backend}: {check.reason}" for check in result.checks if not check.passed]
    not_here = [f"not here: {each}" for each in result.not_here]
    table.caption = "\n".join([f"{result.verdict}, {result.seconds:.1f} s", *failed, *result.changed, *not_here])
    return table

"""What `edgecls pretrained`, `edgecls adopt`, `edgecls engine` and `edgecls bundle` print of what they made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from edgecls.tables.common import PRECISION_NAMES, described, facts_table

if TYPE_CHECKING:
    from edgecls.device.bundle import BundleResult
    from edgecls.export.adopt.run import AdoptResult
    from edgecls.export.engine_choice import EngineChoice
    from edgecls.train.networks.pretrained import PretrainedResult


def pretrained(result: PretrainedResult) -> Table:
    facts = facts_table("Published weights")
    facts.add_row("weights", result.weights)
    facts.add_row("classes", f"{result.n_classes:,}")
    facts.add_row("parameters", f"{result.n_parameters / 1e6:.2f} M")
    facts.add_row("input", described(result.preprocessing))
    facts.add_row(
        "proof", f"logits within {result.difference:.1g} of the published network's, relative, on real photos"
    )
    facts.add_row("run", str(result.run))
    facts.add_row("next", "edgecls export --int8 --calibration DIR --validation DIR")
    return facts


def adopted(result: AdoptResult) -> Table:
    facts = facts_table("Adopted")
    facts.add_row("file", str(result.file))
    facts.add_row("classes", f"{result.n_classes:,}")
    facts.add_row("input", described(result.preprocessing))
    for change in result.changes:
        facts.add_row("change", change)
    facts.add_row("proof", f"logits within {result.difference:.1g} of the original file's, relative, on real photos")
    facts.add_row("run", str(result.run))
    facts.add_row("next", "edgecls export --int8 --calibration DIR --validation DIR")
    return facts


def built(choice: EngineChoice) -> Table:
    result = choice.kept
    facts, record = facts_table("Engine"), result.record
    facts.add_row("file", str(result.file))
    facts.add_row("state", "as built before: nothing changed" if result.reused else f"built in {result.seconds:.1f} s")
    facts.add_row("size", f"{result.bytes / 1e6:.2f} MB")
    facts.add_row("precision", PRECISION_NAMES[record.precision])
    facts.add_row("batches", f"{record.batch.min} to {record.batch.max}, fastest at {record.batch.opt}")
    facts.add_row("runs on", record.runs_on)
    facts.add_row("built by", f"{record.flavour} {record.tensorrt}")
    for each in choice.judged:
        facts.add_row(
            PRECISION_NAMES[each.precision],
            each.reason or f"{each.images_per_second:,.0f} img/s, and the golden answers",
        )
    return facts


def bundled(result: BundleResult) -> Table:
    facts = facts_table("Bundle")
    for name, size in sorted(result.sizes.items(), key=lambda item: -item[1]):
        facts.add_row(name, f"{size / 1e6:,.2f} MB")
    for name in result.left_out:
        facts.add_row(name, "left out: it missed the gate")
    facts.add_row("file", f"{result.file}, {result.bytes / 1e6:,.2f} MB")
    facts.add_row("next", f"on the device: edgecls predict PHOTOS --model {result.file.name}")
    return facts

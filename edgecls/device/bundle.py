"""A run to a bundle: the files that passed the gate, what proves them, and nothing that the device does not need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from edgecls.bundles import SUFFIX, is_bundle, write_bundle
from edgecls.device.options import BundleOptions
from edgecls.errors import RunError
from edgecls.manifest import Manifest, without_places
from edgecls.records import json_text
from edgecls.runs import (
    BASELINE,
    CALIBRATION,
    ENSEMBLE,
    EXPORT,
    GOLDEN,
    MANIFEST,
    MODEL_FILES,
    Run,
    atomic_path,
    find_model,
    members_of,
    read_json,
)
from edgecls.runtime.backends.belonging import another, check_belongs
from edgecls.runtime.backends.export_record import ExportRecord

REPORT: Final = "report.html"
NOTICE: Final = "NOTICE.txt"

_ORIGINS: Final = {
    "trained": "The weights were trained by whoever made this bundle, from those named below where there are any.",
    "published": "The weights are published ones, unchanged; the licence of whoever published them applies.",
    "adopted": "The network is somebody else's ONNX file; the licence that it came with applies.",
}


@dataclass(frozen=True)
class BundleResult:
    """What was put into a bundle.

    Attributes:
        file: the bundle.
        sizes: bytes by name of what is in it.
        left_out: model files that missed the gate.
        bytes: of the whole file.
    """

    file: Path
    sizes: Mapping[str, int]
    left_out: tuple[str, ...]
    bytes: int

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "file": str(self.file)}


def bundle(options: BundleOptions) -> BundleResult:
    """Write the bundle of a run or an ensemble. Nothing is left of one that could not be finished.

    Raises:
        RunError: no such run, never exported, a file that is not the one that was measured, or `out` cannot be written.
    """
    root = find_model(options.run)
    if is_bundle(Path(options.run)):
        raise RunError(f"{options.run} is a bundle already; copy it, or name the run folder that it was made of")
    if not root.is_dir():
        raise RunError(f"{options.run} is a file; expected a run folder, as edgecls train makes it")
    file = options.out or Path(f"{root.resolve().name}{SUFFIX}")
    content: dict[str, Path | bytes] = {}
    left_out: list[str] = []
    for member in map(Path, members_of(root)):
        prefix = "" if member == root else f"{member.relative_to(root).as_posix()}/"
        for name, each in _files_of(Run(member)):
            content[prefix + name] = each
        left_out += [prefix + name for name in _missed(member)]
    if (root / ENSEMBLE).is_file():
        content[ENSEMBLE] = json_text(read_json(root / ENSEMBLE)).encode()
    with atomic_path(file) as partial, partial.open("wb") as stream:
        write_bundle(stream, content)
    sizes = {name: len(each) if isinstance(each, bytes) else each.stat().st_size for name, each in content.items()}
    return BundleResult(file, sizes, tuple(left_out), file.stat().st_size)


def _files_of(run: Run) -> Iterator[tuple[str, Path | bytes]]:
    manifest = run.manifest
    models = [run.path(MODEL_FILES[each]) for each in ExportRecord.read(run.folder).passed]
    missing = [file.name for file in models if not file.is_file()]
    if missing:
        raise RunError(f"{run.folder}: no {missing[0]} in it; make it with: edgecls export {run.folder}")
    for model in models:
        if check_belongs(model) == "another":
            raise another(model)
    files: dict[str, Path | bytes] = {model.name: model for model in models}
    if run.path(GOLDEN).is_file():
        files[GOLDEN] = run.path(GOLDEN)
    for name in (EXPORT, CALIBRATION, BASELINE):
        if run.path(name).is_file():
            files[name] = json_text(without_places(read_json(run.path(name)))).encode()
    if run.path(REPORT).is_file():
        files[REPORT] = _report(run.path(REPORT), manifest)
    files[NOTICE] = _notice(manifest).encode()
    hashes = {
        name: sha256(each if isinstance(each, bytes) else each.read_bytes()).hexdigest() for name, each in files.items()
    }
    yield from files.items()
    yield MANIFEST, replace(manifest, training=without_places(manifest.training), files=hashes).to_json().encode()


def _missed(folder: Path) -> list[str]:
    record = ExportRecord.read(folder)
    return [MODEL_FILES[each] for each in record.files if each not in record.passed]


def _report(file: Path, manifest: Manifest) -> bytes:
    """The page, with the names of the folders that it was made from and not where they lie."""
    page = file.read_text(encoding="utf-8")
    texts = [value for value in manifest.training.values() if isinstance(value, str)]
    places = [text for text in texts if without_places(text) not in (text, "")]  # the root has no name to put there
    for place in sorted(places, key=len, reverse=True):
        page = page.replace(place, without_places(place))
    return page.encode()


def _notice(manifest: Manifest) -> str:
    began = without_places(manifest.training.get("weights") or "none")
    return (
        f"{manifest.model}, made into a bundle by edgecls {manifest.edgecls} (Apache License 2.0).\n"
        f"{_ORIGINS[manifest.origin]}\n"
        f"Weights that the training began with: {began}.\n"
        "The golden answers hold a few of the validation images: whoever may not see those may not have this file.\n"
    )

"""The models of a server: opened, proved, each with a queue of its own, and changed while they serve."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from edgecls.drift import Drift
from edgecls.errors import RunError
from edgecls.golden import Golden
from edgecls.runs import GOLDEN, Run, folder_of_run, members_of
from edgecls.runtime.backends.belonging import answers_as
from edgecls.runtime.backends.lone import lanes_of
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.drift_watch import DriftWatch
from edgecls.runtime.ensemble import member_names
from edgecls.serve.batcher import Batch, Batcher
from edgecls.serve.figures import Figures
from edgecls.serve.options import ServeOptions

Say = Callable[[str], None]

_WINDOW: Final = 1000  # of the last pictures, which are compared with the validation images
_LOOK: Final = 100  # pictures between two looks


class LoadedModel:
    """An opened model with its queue; `close` answers what the queue holds first.

    Attributes:
        members: short names of the models that vote, for the columns of a row.
    """

    def __init__(self, name: str, classifier: Classifier, options: ServeOptions, figures: Figures, log: Say) -> None:
        self.classifier = classifier
        self._name, self._figures, self._log = name, figures, log
        self._watch = DriftWatch.of(classifier, _WINDOW, on_note=log)
        self._since_look, self._told = 0, frozenset[str]()
        self.members = member_names([str(each.file) for each in classifier.members])
        self.batcher = Batcher(
            classifier,
            capacity=options.limits.queue,
            max_wait_ms=options.max_wait_ms,
            top_k=options.top_k,
            on_batch=self._count,
        )

    @classmethod
    def load(cls, name: str, place: str, options: ServeOptions, figures: Figures, log: Say) -> LoadedModel:
        """Open a model and let it prove itself, which also warms it up.

        Args:
            place: a run folder, a bundle, a file, or the folder of an ensemble.
            log: told where choosing a device takes time, and later of drift.

        Raises:
            RunError: no such model, or it does not give its golden answers here.
            EdgeclsError: as `Classifier.of`.
        """
        how = replace(options.classifier, has_lone_lane=True)
        classifier = Classifier.of(members_of(place), how, on_note=log)
        try:
            _prove(classifier, log)
            return cls(name, classifier, options, figures, log)
        except BaseException:
            classifier.close()
            raise

    def _count(self, batch: Batch) -> None:
        self._figures.count_batch(self._name, batch)
        if self._watch:
            self._watch.add(batch.answered, batch.predictions)
            self._since_look += len(batch.predictions)
            if self._since_look >= _LOOK:
                self._since_look = 0
                self._warn()

    def _warn(self) -> None:
        """A line where more has drifted than the last time."""
        drift = self.drift()
        different = frozenset[str](drift.different if drift else ())
        if drift and different - self._told:
            self._log(
                f"warning: {self._name}: the last {drift.n:,} pictures differ from the validation images in "
                f"{drift.in_words()}"
            )
        self._told = different

    def drift(self) -> Drift | None:
        """How far the last pictures are from the validation images; None where that is not known."""
        return self._watch.drift() if self._watch else None

    def close(self) -> None:
        self.batcher.close()
        self.classifier.close()


class ServedModel:
    """A name that clients ask for, and the model that answers to it now.

    `loaded` changes between two requests: whoever keeps what it was is answered by that one.
    """

    def __init__(self, name: str, load: Callable[[], LoadedModel]) -> None:
        """Load the model, as `LoadedModel.load` does, which `load` calls."""
        self.name, self._load = name, load
        self.loaded = load()
        self._reloading = asyncio.Lock()

    async def reload(self) -> None:
        """Open the model anew beside the old one, and let it take the old one's place.

        Raises:
            EdgeclsError: it cannot be opened or does not prove itself; the old one goes on.
        """
        async with self._reloading:
            fresh = await asyncio.to_thread(self._load)
            old, self.loaded = self.loaded, fresh
            await asyncio.to_thread(old.close)

    def close(self) -> None:
        self.loaded.close()


def _prove(classifier: Classifier, log: Say) -> None:
    """Every member answers its run's golden images.

    Raises:
        RunError: one answers otherwise.
    """
    for member in classifier.members:
        run = Run(folder_of_run(member.file) if member.file else Path())
        if not run.path(GOLDEN).is_file():
            log(f"warning: {member.file}: has no golden answers beside it, so nothing shows that it is right here")
        elif not all(answers_as(Golden.of(run), lane) for lane in lanes_of(member.backend)):
            raise RunError(
                f"{member.file}: does not give the golden answers of its run on {member.backend.name}, so it is not "
                f"served; see: edgecls verify {run.folder}"
            )

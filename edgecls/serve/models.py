"""The models of a server: opened, proved, each with a queue of its own, and changed while they serve."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

from edgecls.errors import RunError
from edgecls.golden import Golden
from edgecls.runs import GOLDEN, Run, members_of
from edgecls.runtime.backends.belonging import answers_as
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.ensemble import member_names
from edgecls.serve.batcher import Batcher
from edgecls.serve.figures import Figures
from edgecls.serve.options import ServeOptions

Say = Callable[[str], None]


class LoadedModel:
    """An opened model with its queue; `close` answers what the queue holds first.

    Attributes:
        members: short names of the models that vote, for the columns of a row.
    """

    def __init__(self, name: str, classifier: Classifier, options: ServeOptions, figures: Figures) -> None:
        self.classifier = classifier
        self.members = member_names([str(each.file) for each in classifier.members])
        self.batcher = Batcher(
            classifier,
            capacity=options.limits.queue,
            max_wait_ms=options.max_wait_ms,
            top_k=options.top_k,
            on_batch=partial(figures.count_batch, name),
        )

    @classmethod
    def load(cls, name: str, place: str, options: ServeOptions, figures: Figures, say: Say) -> LoadedModel:
        """Open a model and let it prove itself, which also warms it up.

        Args:
            place: a run folder, a bundle, a file, or the folder of an ensemble.
            say: told where choosing a device takes time.

        Raises:
            RunError: no such model, or it does not give its golden answers here.
            EdgeclsError: as `Classifier.of`.
        """
        classifier = Classifier.of(members_of(place), options.classifier, on_note=say)
        try:
            _prove(classifier)
        except BaseException:
            classifier.close()
            raise
        return cls(name, classifier, options, figures)

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


def _prove(classifier: Classifier) -> None:
    """Every member answers its run's golden images.

    Raises:
        RunError: one answers otherwise.
    """
    for member in classifier.members:
        folder = member.file.parent if member.file else Path()
        run = Run(folder.parent if folder.name == "engines" else folder)
        if run.path(GOLDEN).is_file() and not answers_as(Golden.of(run), member.backend):
            raise RunError(
                f"{member.file}: does not give the golden answers of its run on {member.backend.name}, so it is not "
                f"served; see: edgecls verify {run.folder}"
            )

"""INT8 graphs whose weights and ranges were trained with the rounding in place; the door to `edgecls.train.fit.qat`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from edgecls.calibration.ranges import Calibration, network_sha256
from edgecls.export.graphs.int8 import quantized, rounded_in, with_corrected_biases
from edgecls.export.job import Job
from edgecls.export.options import Flavour
from edgecls.labelled import LabelledImage
from edgecls.train.fit.qat import train_quantised
from edgecls.train.networks.quantised_network import Quantisation


def quantisation_aware(
    job: Job, graph: onnx.ModelProto, calibration: Calibration, flavours: Sequence[Flavour]
) -> tuple[onnx.ModelProto, Calibration, str]:
    """The network trained to answer as it does while its tensors are rounded as its INT8 files round them.

    Args:
        graph: the float32 network.
        calibration: of it, whose ranges the training begins with.

    Returns:
        The float32 network with its new weights, its ranges, and what was done in words.

    Raises:
        DatasetError: no image can be read.
        ExportError: the network has an operator that cannot be trained.
    """
    # the teacher is the network itself, so images without labels will do
    images = job.data.training or [LabelledImage(Path(each.path), "") for each in calibration.images]
    quantisations = []
    for flavour in flavours:
        tensors, weights = rounded_in(quantized(graph, calibration, flavour))
        quantisations.append(Quantisation(tensors, weights, is_symmetric=flavour == "int8"))
    options = job.options
    result = train_quantised(
        graph, with_corrected_biases(graph, calibration), calibration.ranges, quantisations, images,
        job.manifest.preprocessing, n_epochs=options.qat_epochs, seed=options.sample.seed, progress=job.progress,
    )  # fmt: skip
    # without the means: they are those of the old weights, and the biases have learnt what rounding shifts
    learnt = replace(
        calibration,
        ranges={**calibration.ranges, **result.ranges},
        means={},
        network_sha256=network_sha256(result.graph),
    )
    epochs = "1 epoch" if result.n_epochs == 1 else f"{result.n_epochs} epochs"
    told = f"trained with the rounding in place, {epochs} of {result.n_images:,} images, {result.seconds:.0f} s"
    return result.graph, learnt, told

"""What every ONNX file of edgecls has in common: the names in it, and the manifest inside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import onnx
from onnx import helper

from edgecls.manifest import METADATA_KEY, Manifest, without_places

OPSET: Final = 20  # the highest that TensorRT 10.3 (JetPack 6) reads; FP16 scales in Q/DQ need 19

INPUT: Final = "images"  # uint8 (n, h, w, 3), RGB, dynamic n
OUTPUT: Final = "logits"  # float32 (n, n_classes)
HEAD_PREFIX: Final = "head/"  # of the nodes of a fitted classifier, which stay float32 in every precision
PIXEL_SCALE: Final = "pixel_scale"  # weight of the 1x1 convolution that applies mean and std; stays float in INT8


def needs_onnx_runtime(graph: onnx.ModelProto) -> bool:
    """Whether it has operators that TensorRT cannot run: those of `ai.onnx.ml`, such as ensembles of trees."""
    return any(node.domain == "ai.onnx.ml" for node in graph.graph.node)


def embed_manifest(graph: onnx.ModelProto, manifest: Manifest) -> None:
    """Put the manifest into the file's metadata, in place of the one that may be there.

    The file travels, so where the training data lay stays at home.
    """
    manifest = replace(manifest, training=without_places(manifest.training))
    kept = [entry for entry in graph.metadata_props if entry.key != METADATA_KEY]
    del graph.metadata_props[:]
    graph.metadata_props.extend([*kept, onnx.StringStringEntryProto(key=METADATA_KEY, value=manifest.to_json())])


def drop_unused_domains(model: onnx.ModelProto) -> None:
    """Leave one entry for each domain that a node uses, the standard's first; ONNX Runtime lists all it knows."""
    used = {plain_domain(node.domain) for node in all_nodes(model.graph)}
    versions = {plain_domain(opset.domain): opset.version for opset in model.opset_import}
    kept = [helper.make_opsetid(domain, versions[domain]) for domain in sorted(used & set(versions))]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def plain_domain(domain: str) -> str:
    """The standard's domain by its usual name, which is empty; any other as it is."""
    return "" if domain == "ai.onnx" else domain


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a graph, those inside branches and loops included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from all_nodes(attribute.g)

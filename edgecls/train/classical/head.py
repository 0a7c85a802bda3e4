"""A fitted classifier as ONNX, from features to logits, proved to answer as scikit-learn does."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper
from torch import nn

from edgecls.errors import MissingExtra, TrainingError
from edgecls.train.classical.settings import XGBOOST, Classical, Features
from edgecls.train.networks.onnx_head import FEATURES, LOGITS, OnnxHead

_OPSETS: Final = {"": 20, "ai.onnx.ml": 3}  # the first as in export/graphs/graph.py, to whose graphs the head is joined
_LEAST_PROBABILITY: Final = 1e-6  # what no tree voted for is unlikely, not impossible; also keeps the logarithm finite

# By scikit-learn's own scores, the ONNX answer may be this much behind the best: float32 sums break ties otherwise.
_TIE: Final = 1e-5


def linear_head(classical: Classical) -> nn.Linear:
    """Logistic regression as what it is: one linear layer, with the scaling in its weights.

    Unlike the others it needs no file of its own and no ONNX: it goes into the checkpoint, and every precision and
    device runs it. The two-class case has one row of weights in scikit-learn; here the first class has its negative.
    """
    scale, model = classical.pipeline.named_steps["scale"], classical.model
    weight = model.coef_ / scale.scale_
    bias = model.intercept_ - weight @ scale.mean_
    if len(weight) == 1:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    layer = nn.Linear(classical.n_features, classical.n_classes)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return layer


def head_onnx(classical: Classical, features: Features) -> onnx.ModelProto:
    """Features in, logits out; proved to answer as scikit-learn does.

    The SVM is written in plain ONNX, so TensorRT runs it. Trees are converted by skl2onnx and need the domain
    `ai.onnx.ml`, which ONNX Runtime has and TensorRT has not; their logits are the logarithms of their probabilities.

    Args:
        features: (n, n_features) on which the proof is made, such as those it was fitted on.

    Raises:
        TrainingError: the graph answers otherwise than the classifier, or cannot be made.
    """
    body = _svm(classical) if classical.name == "svm" else _trees(classical)
    model = _joined(_front(classical), body)
    check_answers(classical, features, OnnxHead(model, classical.n_features, classical.n_classes))
    return model


def check_answers(classical: Classical, features: Features, head: nn.Module) -> None:
    """Hold the head of the network to what scikit-learn's classifier answers.

    Raises:
        TrainingError: the head does not answer these features as scikit-learn does.
    """
    with torch.no_grad():
        logits = head(torch.from_numpy(np.ascontiguousarray(features))).numpy()
    scores = classical.scores(features)
    behind = scores.max(1) - scores[np.arange(len(scores)), logits.argmax(1)]
    wrong = int((~(behind <= _TIE)).sum()) + int((~np.isfinite(logits)).any(1).sum())
    if wrong:
        raise TrainingError(
            f"--classifier {classical.name}: as ONNX it answers {wrong} of {len(scores)} training images otherwise "
            "than scikit-learn; please report this, and use another classifier"
        )


def _front(classical: Classical) -> onnx.ModelProto:
    """`features` -> `inputs`: what stands before the model. Scaling first, so that sums of large values keep digits."""
    steps = classical.pipeline.named_steps
    nodes, constants, name, width = [], [], FEATURES, classical.n_features
    if "scale" in steps:
        constants += [_constant("mean", steps["scale"].mean_), _constant("factor", 1 / steps["scale"].scale_)]
        nodes += [
            helper.make_node("Sub", [name, "mean"], ["centred"], "centre"),
            helper.make_node("Mul", ["centred", "factor"], ["scaled"], "scale"),
        ]
        name = "scaled"
    if "components" in steps:
        pca = steps["components"]
        width = len(pca.components_)
        constants += [_constant("axes", pca.components_.T), _constant("origin", -pca.components_ @ pca.mean_)]
        nodes.append(helper.make_node("Gemm", [name, "axes", "origin"], ["components"], "project"))
        name = "components"
    nodes.append(helper.make_node("Identity", [name], ["inputs"], "inputs"))
    return _model(nodes, constants, (FEATURES, classical.n_features), ("inputs", width))


def _svm(classical: Classical) -> onnx.ModelProto:
    """RBF kernel, one decision value a pair of classes, and their votes: `inputs` -> `logits`.

    exp(-gamma |x - s|^2) as exp(2 gamma x.s - gamma |s|^2 - gamma |x|^2), so the work is one matrix product. Two
    classes have one decision value d, and logits -d and d; more have scikit-learn's votes, each pair's confidence
    deciding where votes are equal (`decision_function_shape="ovr"`).
    """
    svc = classical.model
    gamma, vectors = float(svc._gamma), np.asarray(svc.support_vectors_, np.float64)
    weights, intercepts = _pairwise(svc)
    constants = [
        _constant("kernel_weight", 2 * gamma * vectors.T),
        _constant("kernel_bias", -gamma * np.square(vectors).sum(1)),
        _constant("minus_gamma", np.array(-gamma)),
        _constant("pair_weight", weights.T),
        _constant("pair_bias", intercepts),
    ]
    nodes = [
        helper.make_node("Gemm", ["inputs", "kernel_weight", "kernel_bias"], ["products"], "products"),
        helper.make_node("ReduceSumSquare", ["inputs", "last_axis"], ["squares"], "squares"),
        helper.make_node("Mul", ["squares", "minus_gamma"], ["length"], "length"),
        helper.make_node("Sum", ["products", "length"], ["exponents"], "exponents"),
        helper.make_node("Exp", ["exponents"], ["kernel"], "kernel"),
        helper.make_node("Gemm", ["kernel", "pair_weight", "pair_bias"], ["pairs"], "pairs"),
    ]
    constants.append(numpy_helper.from_array(np.array([1]), "last_axis"))
    if classical.n_classes == 2:
        constants.append(_constant("sides", np.array([[-1.0, 1.0]])))
        nodes.append(helper.make_node("MatMul", ["pairs", "sides"], [LOGITS], "logits"))
    else:
        first, second = _sides(classical.n_classes)
        constants += [_constant(name, np.array(value)) for name, value in (("zero", 0.0), ("one", 1.0), ("three", 3.0))]
        constants += [_constant("sides", first - second), _constant("all_second", second.sum(0))]
        nodes += [
            # a positive value is a vote for the first of the pair, any other for the second
            helper.make_node("Greater", ["pairs", "zero"], ["is_first"], "is_first"),
            helper.make_node("Cast", ["is_first"], ["firsts"], "firsts", to=TensorProto.FLOAT),
            helper.make_node("Gemm", ["firsts", "sides", "all_second"], ["votes"], "votes"),
            helper.make_node("MatMul", ["pairs", "sides"], ["confidence"], "confidence"),
            helper.make_node("Abs", ["confidence"], ["size"], "size"),
            helper.make_node("Sum", ["size", "one"], ["larger"], "larger"),
            helper.make_node("Mul", ["larger", "three"], ["divisor"], "divisor"),
            helper.make_node("Div", ["confidence", "divisor"], ["below_half"], "below_half"),
            helper.make_node("Sum", ["votes", "below_half"], [LOGITS], "logits"),
        ]
    return _model(nodes, constants, ("inputs", vectors.shape[1]), (LOGITS, classical.n_classes))


def _pairwise(svc: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights (n_pairs, n_vectors) and intercepts (n_pairs,) of the decision values, from libsvm's compact form.

    Its dual_coef_ has n_classes - 1 rows: a vector of class i has in row j - 1 (j > i) or j (j < i) its weight in the
    pair of i and j.
    """
    ends = np.concatenate([[0], np.cumsum(svc.n_support_)])
    n_classes, dual = len(svc.n_support_), svc.dual_coef_
    if n_classes == 2:  # scikit-learn has turned its sign, so that positive is the second class
        return np.asarray(dual, np.float64), np.asarray(svc.intercept_, np.float64)
    rows = []
    for i in range(n_classes):
        for j in range(i + 1, n_classes):
            row = np.zeros(dual.shape[1])
            row[ends[i] : ends[i + 1]] = dual[j - 1, ends[i] : ends[i + 1]]
            row[ends[j] : ends[j + 1]] = dual[i, ends[j] : ends[j + 1]]
            rows.append(row)
    return np.stack(rows), np.asarray(svc.intercept_, np.float64)


def _sides(n_classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two matrices (n_pairs, n_classes) with a one at the first and at the second class of each pair."""
    pairs = [(i, j) for i in range(n_classes) for j in range(i + 1, n_classes)]
    eye = np.eye(n_classes)
    return eye[[i for i, _ in pairs]], eye[[j for _, j in pairs]]


def _trees(classical: Classical) -> onnx.ModelProto:
    """`inputs` -> `logits`, the logarithm of what skl2onnx gives as probabilities."""
    try:
        from skl2onnx import convert_sklearn, update_registered_converter  # noqa: PLC0415  slow to load, and only for trees
        from skl2onnx.common.data_types import FloatTensorType  # noqa: PLC0415
        from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtra(f"--classifier {classical.name}", "train") from error
    steps, model = classical.pipeline.named_steps, classical.model
    width = len(steps["components"].components_) if "components" in steps else classical.n_features
    convert, allowed = _converter(classical)
    name = f"Edgecls{type(model).__name__}"
    update_registered_converter(
        type(model), name, calculate_linear_classifier_output_shapes, convert, options=allowed, overwrite=True
    )
    converted = convert_sklearn(
        model,
        initial_types=[("inputs", FloatTensorType([None, width]))],
        options={id(model): {"zipmap": False}},
        target_opset=_OPSETS,
    )
    (trees,) = [node for node in converted.graph.node if node.op_type == "TreeEnsembleClassifier"]
    trees.name = "trees"
    probabilities = trees.output[1]
    constants = [_constant("least", np.array(_LEAST_PROBABILITY)), _constant("most", np.array(1.0))]
    nodes = [
        trees,
        helper.make_node("Clip", [probabilities, "least", "most"], ["clipped"], "clip"),
        helper.make_node("Log", ["clipped"], [LOGITS], "log"),
    ]
    return _model(nodes, constants, ("inputs", width), (LOGITS, classical.n_classes))


def _converter(classical: Classical) -> tuple[Any, dict[str, list[bool]]]:
    """What converts it, and which options that knows."""
    allowed = {"zipmap": [True, False], "nocl": [True, False], "raw_scores": [True, False]}
    if classical.name == "xgboost":
        try:
            from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost  # noqa: PLC0415
        except ImportError as error:
            raise MissingExtra("--classifier xgboost", XGBOOST) from error
        return convert_xgboost, allowed
    from skl2onnx.operator_converters.random_forest import (  # noqa: PLC0415
        convert_sklearn_random_forest_classifier,
    )

    def convert(scope: Any, operator: Any, container: Any) -> None:
        convert_sklearn_random_forest_classifier(scope, operator, _IntegerAttributes(container), op_version=3)

    return convert, {**allowed, "decision_path": [True, False], "decision_leaf": [True, False]}


class _IntegerAttributes:
    """A container of skl2onnx that writes truth values as integers: it lists False, which ONNX 1.23 refuses."""

    def __init__(self, container: Any) -> None:
        self._container = container

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def add_node(self, *args: Any, **attributes: Any) -> None:
        name = "nodes_missing_value_tracks_true"
        if name in attributes:
            attributes[name] = [int(value) for value in attributes[name]]
        self._container.add_node(*args, **attributes)


def _constant(name: str, values: NDArray[Any]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(values, np.float32).reshape(np.shape(values)), name)


def _model(
    nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], given: tuple[str, int], answered: tuple[str, int]
) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name, width in (given, answered)]
    graph = helper.make_graph(nodes, "head", ends[:1], ends[1:], constants)
    used = {node.domain for node in nodes} | {""}
    opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items() if domain in used]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="edgecls")


def _joined(front: onnx.ModelProto, body: onnx.ModelProto) -> onnx.ModelProto:
    front = compose.add_prefix(front, "front/", rename_inputs=False, rename_outputs=False)
    body = compose.add_prefix(body, "model/", rename_inputs=False, rename_outputs=False)
    joined = compose.merge_models(front, body, [("inputs", "inputs")])
    joined.ir_version = front.ir_version
    opsets = {each.domain: each.version for each in joined.opset_import}  # each part has brought its own
    del joined.opset_import[:]
    joined.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in opsets.items())
    onnx.checker.check_model(joined, full_check=True)
    return joined

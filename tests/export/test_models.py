"""`edgecls models`: the table is true of the networks that it names, and a measurement is one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest
import torchvision
from typer.testing import CliRunner

from edgecls.cli import app
from edgecls.errors import MissingExtra, OptionError
from edgecls.export.graphs.macs import macs_of
from edgecls.export.model_costs import costs_of
from edgecls.export.models import Costs, models
from edgecls.export.onnx import onnx_from_untrained
from edgecls.export.options import ModelsOptions
from edgecls.progress import Progress
from edgecls.train.catalogue import ALIASES, CATALOGUE, CataloguedNetwork
from edgecls.train.preflight import is_model
from edgecls.train.recipe_options import NetworkOptions

BY_NAME = {network.model: network for network in CATALOGUE}


def test_every_network_of_the_table_can_be_trained() -> None:
    assert len(BY_NAME) == len(CATALOGUE)
    assert all(is_model(name) for name in [*BY_NAME, *ALIASES.values()])
    assert set(ALIASES.values()) <= set(BY_NAME)
    assert all(network.source for network in CATALOGUE if network.top1)
    assert all(network.measured_on for network in CATALOGUE if network.int8_lost is not None)


@pytest.mark.parametrize("network", [each for each in CATALOGUE if "torchvision" in each.source], ids=lambda n: n.model)
def test_published_figures_are_those_of_torchvision(network: CataloguedNetwork) -> None:
    meta = torchvision.models.get_model_weights(network.model).DEFAULT.meta
    assert network.top1 == pytest.approx(meta["_metrics"]["ImageNet-1K"]["acc@1"], abs=0.01)
    assert network.parameters == pytest.approx(meta["num_params"] / 1e6, rel=0.005)
    assert network.macs == pytest.approx(1000 * meta["_ops"], rel=0.01)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet9"])
def test_size_and_work_are_those_of_the_exported_network(name: str, tmp_path: Path) -> None:
    network, file = BY_NAME[name], tmp_path / "model.onnx"
    onnx_from_untrained(name, network.size, 1000 if network.top1 else 10, file)
    graph = onnx.load(file)
    assert sum(macs_of(graph).values()) / 1e6 == pytest.approx(network.macs, rel=0.01)
    # batch norms are folded: their weights are biases now, at most one in a hundred less
    n_weights = sum(onnx.numpy_helper.to_array(each).size for each in graph.graph.initializer)
    assert n_weights / 1e6 == pytest.approx(network.parameters, rel=0.02)


def test_a_network_is_measured_on_this_machine() -> None:
    costs = costs_of(BY_NAME["resnet9"])
    assert costs.fp32 > 0
    assert costs.int8 > 0
    assert 0 < costs.start_ms < 60_000
    assert costs.megabytes == pytest.approx(0.45, abs=0.1)


def test_one_network_that_is_not_installed_leaves_the_others() -> None:
    def measured(network: CataloguedNetwork) -> Costs:
        if network.model.startswith("timm"):
            raise MissingExtra(f"--model {network.model}", "train")
        return Costs(100, 200, 30, 4)

    seen: list[int] = []
    result = models(ModelsOptions(("mobilenet_v2", "fast")), measured, Progress(on_images=seen.append))
    assert [row.network.model for row in result.rows] == ["mobilenet_v2", "timm/mobilenetv4_conv_small"]
    assert [bool(row.costs) for row in result.rows] == [True, False]
    assert "edgecls[train]" in result.rows[1].error
    assert seen == [1, 1]
    assert result.machine


def test_the_table_needs_no_torch_and_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    told = CliRunner().invoke(app, ["models"])
    assert told.exit_code == 0, told.output
    for network in CATALOGUE:
        assert re.search(rf"{network.model} .*{network.macs:,.0f}", told.output)
    assert "--model fast is timm/mobilenetv4_conv_small." in told.output
    assert max(map(len, told.output.splitlines())) <= 80
    told = CliRunner().invoke(app, ["models", "fast", "--json"])
    (row,) = json.loads(told.stdout)["rows"]
    assert (row["alias"], row["costs"], row["network"]["size"]) == ("fast", None, 224)


def test_a_name_that_is_not_in_the_table_is_told_with_those_that_are_close() -> None:
    with pytest.raises(OptionError, match="resnet81: not in the table of edgecls models; did you mean resnet18"):
        models(ModelsOptions(("resnet81",)))


def test_fast_and_accurate_are_names_for_training() -> None:
    assert NetworkOptions("fast").model == "timm/mobilenetv4_conv_small"
    assert NetworkOptions("accurate").model == "timm/mobilenetv4_conv_medium"

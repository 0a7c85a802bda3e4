"""What edgecls calls of TensorRT is there in the real bindings, and the stand-ins have no more than they have."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from typing import Any, Final

import pytest

from edgecls.export import engine as building
from edgecls.runtime.backends import tensor_rt as running
from tests.fakes import tensorrt as fakes

API: Final[dict[str, dict[str, list[str]]]] = json.loads(
    Path(__file__).with_name("tensorrt_api.json").read_text(encoding="utf-8")
)
# names of variables in the two modules, and what they hold
BUILDING: Final = {
    "builder": "Builder", "config": "IBuilderConfig", "network": "INetworkDefinition", "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
}  # fmt: skip
RUNNING: Final = {
    "engine": "ICudaEngine", "context": "IExecutionContext", "config": "IRuntimeConfig", "_runtime": "Runtime",
    "_engine": "ICudaEngine",
}  # fmt: skip
# asked for only where TensorRT is that for RTX, or behind hasattr
RTX: Final = {"num_compute_capabilities", "set_compute_capability", "cuda_graph_strategy"}
ONLY_WHERE_THERE: Final = {"create_runtime_config", "set_execution_context_allocation_strategy"}
OF_OURS: Final = {"slots", "record", "run", "close", "load", "profiled"}  # of the class Engine, which is edgecls's


def asked(module: Any, holds: dict[str, str]) -> set[tuple[str, str]]:
    """(class, member) of TensorRT that the module uses."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value
        name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
        if name in holds and node.attr not in RTX | OF_OURS:
            found.add((holds[name], node.attr))
        is_enum = isinstance(owner, ast.Attribute) and isinstance(owner.value, ast.Name | ast.Attribute)
        if is_enum and owner.attr in API["11.4.0.106"]:  # type: ignore[union-attr]
            found.add((owner.attr, node.attr))  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("version", API)
@pytest.mark.parametrize(("module", "holds", "least"), [(building, BUILDING, 20), (running, RUNNING, 12)])
def test_all_that_is_called_is_there(version: str, module: Any, holds: dict[str, str], least: int) -> None:
    calls = asked(module, holds)
    assert len(calls) >= least, calls
    missing = {
        f"{owner}.{member}"
        for owner, member in calls
        if member not in API[version].get(owner, []) and member not in ONLY_WHERE_THERE
    }
    assert missing == set()


def test_precision_is_in_the_graph_alone() -> None:
    newest = API["11.4.0.106"]
    assert {"FP16", "INT8", "BF16"} & set(newest["BuilderFlag"]) == set()
    assert {"FP16", "INT8", "BF16"} <= set(API["10.13.3.9"]["BuilderFlag"])
    assert not {member for owner, member in asked(building, BUILDING) if member in ("FP16", "INT8", "int8_calibrator")}


def members(fake: type) -> set[str]:
    return {name for name in vars(fake) if not name.startswith("_")}


@pytest.mark.parametrize("version", ["10.13.3.9", "11.4.0.106"])
def test_the_stand_ins_have_nothing_that_the_real_ones_lack(version: str) -> None:
    real = API[version]
    assert members(fakes.BuilderConfig) <= set(real["IBuilderConfig"])
    assert members(fakes.FakeEngine) <= set(real["ICudaEngine"])
    assert members(fakes.FakeContext) <= set(real["IExecutionContext"])
    assert members(fakes.RuntimeConfig) - RTX <= set(real["IRuntimeConfig"])
    assert members(fakes.Profile) <= set(real["IOptimizationProfile"])
    assert {each.name for each in fakes.FakeTensorRT.DataType} <= set(real["DataType"])

"""What ships to the device stands without torch, and help answers without anything heavy."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgecls

TORCH = ("torch", "torchvision", "lightning", "timm")

# modules that may load torch: training, the export from torch, and those that call them
NEEDS_TORCH = (
    "edgecls.train",
    "edgecls.export.onnx",
    "edgecls.export.qat",
    "edgecls.export.quantise",
    "edgecls.export.report",
    "edgecls.export.model_costs",
    "edgecls.export.convert",
    "edgecls.tables.train",
    "edgecls.export.run",
    "edgecls.demo",
)

# torch itself not by None in sys.modules: SciPy looks there whether it is loaded
BLOCK = f"""
import sys
for name in {TORCH[1:]!r}:
    sys.modules[name] = None  # any import of it now raises ImportError
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("torch is blocked", name="torch")
sys.meta_path.insert(0, Blocked())
"""


def python(code: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, check=False)


def modules() -> list[str]:
    return [info.name for info in pkgutil.walk_packages(edgecls.__path__, "edgecls.")]


def test_every_module_but_training_imports_with_torch_blocked() -> None:
    names = [name for name in modules() if not name.startswith(NEEDS_TORCH)]
    assert "edgecls.runtime.predict" in names
    assert "edgecls.export.graphs.int8" in names
    result = python(BLOCK + "import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in names))
    assert result.returncode == 0, result.stderr


def test_predict_runs_with_torch_blocked(exported_run: Path, photos: Path, tmp_path: Path) -> None:
    code = f"from edgecls.cli import app; app(['predict', {str(photos)!r}, '--model', {str(exported_run)!r}])"
    result = python(BLOCK + code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "accuracy" in result.stdout
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 25


def test_train_without_torch_names_the_extra(photos: Path, tmp_path: Path) -> None:
    result = python(BLOCK + f"from edgecls.cli import app; app(['train', {str(photos)!r}])", cwd=tmp_path)
    assert result.returncode == 1
    assert 'pip install "edgecls[train]"' in result.stderr
    assert "Traceback" not in result.stderr


def test_predict_without_onnxruntime_names_the_extra(exported_run: Path, photos: Path, tmp_path: Path) -> None:
    arguments = ["predict", str(photos), "--model", str(exported_run), "--device", "cpu"]
    result = python(
        f"import sys; sys.modules['onnxruntime'] = None\nfrom edgecls.cli import app; app({arguments!r})", tmp_path
    )
    assert result.returncode == 1
    assert 'pip install "edgecls[cpu]"' in result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from edgecls.cli import app
try:
    app({arguments!r})
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", sorted(set(sys.modules) & {{"numpy", "cv2", "onnxruntime", "matplotlib", "sklearn", *{TORCH!r}}}))
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert "loaded: []" in result.stdout


def test_the_public_door_is_what_it_says() -> None:
    assert edgecls.__all__ == sorted(edgecls.__all__)
    for name in edgecls.__all__:
        assert getattr(edgecls, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Clasifier'"):
        edgecls.Clasifier  # noqa: B018


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("jinja2", ["evaluate", "model.onnx", "photos"], "evaluate"),
        ("sklearn", ["compare", "a.onnx", "b.onnx"], "evaluate"),
        ("jinja2", ["inspect", "photos"], "evaluate"),
        ("cleanlab", ["inspect", "photos", "--model", "run"], "inspect"),
    ],
)
def test_a_look_without_its_packages_names_the_extra(package: str, arguments: list[str], extra: str) -> None:
    result = python(f"import sys; sys.modules[{package!r}] = None\nfrom edgecls.cli import app; app({arguments!r})")
    assert result.returncode == 1
    assert f'pip install "edgecls[{extra}]"' in result.stderr
    assert "Traceback" not in result.stderr

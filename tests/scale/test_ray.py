"""The shards of a plan on Ray: the rows of one process, whatever dies on the way."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgecls.errors import RunError
from edgecls.runtime.options import ClassifierOptions, PredictOptions, RowsOptions, ShardOptions
from edgecls.runtime.predict import predict
from edgecls.scale.merge import merge
from edgecls.scale.options import MergeOptions, PlanOptions
from edgecls.scale.parts import part_of
from edgecls.scale.plan import make_plan
from tests.conftest import draw, write_image, write_linear_model

pytest.importorskip("pyarrow")
pytest.importorskip("ray")
# of Ray's own code, which is not ours to mend
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
LABELS = ("stripes", "checks", "spots")


def _actors() -> list[int]:
    """Processes of Ray on this machine that run an actor of ours."""
    found = []
    for each in Path("/proc").iterdir():
        try:
            if each.name.isdigit() and (each / "cmdline").read_bytes().startswith(b"ray::_Actor"):
                found.append(int(each.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
def test_rows_are_those_of_one_process_though_an_actor_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_ray = pytest.importorskip("edgecls.scale.on_ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(on_ray.__file__).parents[2]))
    model = write_linear_model(tmp_path / "model.onnx", LABELS)
    for number in range(40):
        write_image(tmp_path / "photos" / LABELS[number % 2] / f"{number}.png", draw(LABELS[number % 2], number))
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")
    make_plan(PlanOptions(str(tmp_path / "photos"), tmp_path / "plan", 12))
    cpu = ClassifierOptions(device="cpu")
    options = PredictOptions(
        models=(str(model),), classifier=cpu, shards=ShardOptions(tmp_path / "plan", on="ray", workers=2)
    )
    killed: list[int] = []

    def kill() -> None:
        while not killed and not any((tmp_path / "plan" / part_of(shard)).exists() for shard in range(12)):
            for pid in _actors()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    report = on_ray.predict_on_ray(options)
    killer.join()
    assert killed
    assert (report.done, report.images, report.errors) == (tuple(range(12)), 41, 1)
    assert merge(MergeOptions(tmp_path / "plan", tmp_path / "merged.csv")).again == ()
    predict(PredictOptions((tmp_path / "photos",), (str(model),), cpu, rows=RowsOptions(tmp_path / "plain.csv")))
    assert (tmp_path / "merged.csv").read_text() == (tmp_path / "plain.csv").read_text()

    (tmp_path / "plan" / part_of(5)).unlink()
    assert on_ray.predict_on_ray(replace(options, shards=replace(options.shards, shard="3,5"))).done == (5,)
    (tmp_path / "plan" / part_of(5)).unlink()
    other = write_linear_model(tmp_path / "other.onnx", LABELS, seed=3)
    with pytest.raises(RunError, match="was made by another model"):
        on_ray.predict_on_ray(replace(options, models=(str(other),)))
    assert merge(MergeOptions(tmp_path / "plan")).again == (5,)
    other.write_bytes(other.read_bytes()[:900])
    with pytest.raises(RunError, match=r"^[^\n]*other.onnx: ONNX Runtime cannot open it:[^\n]*$"):
        on_ray.predict_on_ray(replace(options, models=(str(other),)))
    with pytest.raises(RunError, match="Ray cannot be reached at 127"):
        on_ray.predict_on_ray(replace(options, shards=replace(options.shards, address="127.0.0.1:1")))

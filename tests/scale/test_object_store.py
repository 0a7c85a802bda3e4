"""Pictures in an object store: a real S3 server on this machine, which fails now and then."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgecls import storage
from edgecls.errors import DatasetError, OptionError, RunError
from edgecls.evaluate.evaluate import EvaluateResult, evaluate
from edgecls.evaluate.look.inspect import inspect
from edgecls.evaluate.look.options import InspectOptions
from edgecls.evaluate.options import EvaluateOptions
from edgecls.local_copy import local_copy
from edgecls.runtime.input.stored import inputs_of, open_source
from edgecls.runtime.options import ClassifierOptions, PredictOptions, RowsOptions, ShardOptions
from edgecls.runtime.predict import predict
from edgecls.scale.merge import merge
from edgecls.scale.options import MergeOptions, PlanOptions
from edgecls.scale.plan import make_plan
from edgecls.scale.run import predict_shards
from edgecls.storage import ArrowStore, StoredFile, open_store
from tests.conftest import draw, write_image, write_linear_model

fs = pytest.importorskip("pyarrow.fs")
moto = pytest.importorskip("moto.server")
serving = pytest.importorskip("werkzeug.serving")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of moto's own imports
CPU = ClassifierOptions(device="cpu")
LABELS = ("stripes", "checks", "spots")


class Faults:
    """Between the server and its clients: some answers to GET fail, some objects always do, and some find no room."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self.share, self.broken, self.full = 0.0, "", ""
        self.n = 0
        self._random = random.Random(0)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if self.full and method in ("PUT", "POST") and path.endswith(self.full):
            self.n += 1
            start("507 Insufficient Storage", [("Content-Type", "application/xml")])
            return [b"<Error><Code>XMinioStorageFull</Code><Message>There is no room left</Message></Error>"]
        is_broken = bool(self.broken) and path.endswith(self.broken)
        if method == "GET" and (is_broken or (path.endswith(".png") and self._random.random() < self.share)):
            self.n += 1
            kind = "error" if is_broken else self._random.choice(("error", "slow", "cut"))
            if kind == "slow":
                time.sleep(0.3)
            elif kind == "error":
                start("500 Internal Server Error", [("Content-Length", "0")])
                return [b""]
            else:
                return self._cut(environ, start)
        return self._app(environ, start)

    def _cut(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Half of the body, and the length of the whole of it."""
        said: list[Any] = []
        body = b"".join(self._app(environ, lambda *given: said.extend(given)))
        start(said[0], said[1])
        return [body[: len(body) // 2]]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Faults, int]]:
    faults = Faults(moto.DomainDispatcherApplication(moto.create_backend_app))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ):  # fmt: skip
            patch.setenv(name, value)
        running = serving.make_server("127.0.0.1", 0, faults, threaded=True)
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield faults, running.server_port
        running.shutdown()
        thread.join()


@pytest.fixture
def bucket(server: tuple[Faults, int], tmp_path: Path) -> str:
    """The address of 60 pictures in folders named as labels, and of a text."""
    faults, port = server
    faults.share, faults.broken, faults.full = 0.0, "", ""
    name = f"bucket{time.monotonic_ns()}"
    filesystem = fs.S3FileSystem(endpoint_override=f"127.0.0.1:{port}", scheme="http", allow_bucket_creation=True)
    filesystem.create_dir(name)
    for number in range(60):
        local = write_image(tmp_path / "local" / LABELS[number % 2] / f"{number}.png", draw(LABELS[number % 2], number))
        with filesystem.open_output_stream(f"{name}/photos/{LABELS[number % 2]}/{number}.png") as stream:
            stream.write(local.read_bytes())
    with filesystem.open_output_stream(f"{name}/photos/notes.txt") as stream:
        stream.write(b"no input")
    return f"s3://{name}/photos?endpoint_override=127.0.0.1:{port}&scheme=http"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_model(tmp_path_factory.mktemp("model") / "model.onnx", LABELS)


def rows(source: str | Path, model: Path, out: Path) -> list[str]:
    predict(PredictOptions((str(source),), (str(model),), CPU, rows=RowsOptions(out)))
    return out.read_text().splitlines()


def test_pictures_of_a_bucket_are_answered_as_files_are(bucket: str, model: Path, tmp_path: Path) -> None:
    assert rows(bucket, model, tmp_path / "s3.csv") == rows(tmp_path / "local", model, tmp_path / "files.csv")


def test_the_endpoint_may_be_said_in_the_environment(
    server: tuple[Faults, int], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server[1]}/")
    assert len(list(open_store(bucket.partition("?")[0]).files())) == 61
    assert len(list(open_store(bucket).files())) == 61


def test_with_faults_every_object_has_one_row(
    server: tuple[Faults, int], bucket: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults, _ = server
    monkeypatch.setattr(storage, "_FIRST_WAIT", 0.01)
    expected = rows(tmp_path / "local", model, tmp_path / "files.csv")
    make_plan(PlanOptions(bucket, tmp_path / "plan", 3))
    faults.share, faults.broken = 0.2, "/7.png"
    predict_shards(PredictOptions(models=(str(model),), classifier=CPU, shards=ShardOptions(tmp_path / "plan")))
    assert faults.n > 5
    result = merge(MergeOptions(tmp_path / "plan", tmp_path / "merged.csv"))
    assert (result.again, result.images, result.errors) == ((), 60, 1)
    got = (tmp_path / "merged.csv").read_text().splitlines()
    assert [line for line in got if ",error," not in line] == [line for line in expected if "/7.png" not in line]
    (broken,) = (line for line in got if ",error," in line)
    assert broken.startswith("checks/7.png,error,,,")
    assert "cannot be read, in 5 tries" in broken


def test_an_object_that_vanishes_or_changes_is_an_error(
    server: tuple[Faults, int], bucket: str, model: Path, tmp_path: Path
) -> None:
    make_plan(PlanOptions(bucket, tmp_path / "plan", 2))
    filesystem, below = fs.FileSystem.from_uri(bucket)
    filesystem.delete_file(f"{below}/stripes/0.png")
    with filesystem.open_output_stream(f"{below}/stripes/2.png") as stream:
        stream.write(b"something else")
    predict_shards(PredictOptions(models=(str(model),), classifier=CPU, shards=ShardOptions(tmp_path / "plan")))
    merge(MergeOptions(tmp_path / "plan", tmp_path / "merged.csv"))
    text = (tmp_path / "merged.csv").read_text()
    assert "stripes/0.png,error,,,it is no longer there" in text
    assert 'stripes/2.png,error,,,"it has changed since the plan was made:' in text
    assert text.count(",ok,") == 58


def beside(bucket: str, name: str) -> str:
    """The address of another folder in the same bucket."""
    return bucket.replace("/photos?", f"/{name}?")


def asked(plan: str | Path, model: Path, shard: str | None = None) -> PredictOptions:
    return PredictOptions(models=(str(model),), classifier=CPU, shards=ShardOptions(plan, shard))


def test_a_plan_and_its_parts_may_lie_in_a_bucket(
    server: tuple[Faults, int], bucket: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_FIRST_WAIT", 0.01)
    place = beside(bucket, "plans/first")
    assert make_plan(PlanOptions(bucket, place, 3)).to_json()["plan"] == place
    with pytest.raises(RunError, match=r"--out s3://.*plans/first.*: there is something in it already"):
        make_plan(PlanOptions(bucket, place, 3))
    assert predict_shards(asked(place, model, "1")).left == 2
    assert merge(MergeOptions(place)).missing == (0, 2)
    rest = predict_shards(asked(place, model))
    assert (rest.done, rest.passed_over, rest.images) == ((0, 2), (1,), 40)
    faults, _ = server
    faults.share = 0.2
    whole = merge(MergeOptions(place, tmp_path / "merged.csv"))
    assert (whole.again, whole.others, whole.note) == ((), (), "")
    assert (tmp_path / "merged.csv").read_text().splitlines() == rows(tmp_path / "local", model, tmp_path / "files.csv")
    store = open_store(place)
    assert sorted(each.name for each in store.files()) == [
        "inputs.parquet", *(f"part-0000{shard}.parquet" for shard in range(3)), "plan.json", "summary.json",
    ]  # fmt: skip
    another = write_linear_model(tmp_path / "another.onnx", LABELS, seed=5)
    with pytest.raises(RunError, match=r"s3://bucket\d+/plans/first/part-00000.parquet: was made by another model"):
        predict_shards(asked(place, another))


def test_a_part_of_a_bucket_that_is_damaged_is_found(bucket: str, model: Path) -> None:
    place = beside(bucket, "plan")
    make_plan(PlanOptions(bucket, place, 2))
    predict_shards(asked(place, model))
    filesystem, below = fs.FileSystem.from_uri(place)
    whole = filesystem.open_input_file(f"{below}/part-00001.parquet").read()
    with filesystem.open_output_stream(f"{below}/part-00001.parquet") as stream:
        stream.write(whole[:-20])
    assert "part-00001.parquet: damaged (" in merge(MergeOptions(place)).wrong[1]


def test_a_full_bucket_leaves_no_part(
    server: tuple[Faults, int], bucket: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults, _ = server
    monkeypatch.setattr(storage, "_FIRST_WAIT", 0.01)
    place = beside(bucket, "plan")
    faults.full = "/inputs.parquet"
    with pytest.raises(
        RunError, match=r"cannot write s3://bucket\d+/plan/inputs.parquet: in 5 tries: .*the room in it"
    ):
        make_plan(PlanOptions(bucket, place, 2))
    faults.full = ""
    make_plan(PlanOptions(bucket, place, 2))
    faults.full, faults.n = "/part-00001.parquet", 0
    with pytest.raises(RunError, match=r"cannot write s3://bucket\d+/plan/part-00001.parquet: .*the room in it and"):
        predict_shards(asked(place, model))
    assert faults.n == 5
    assert merge(MergeOptions(place)).missing == (1,)
    faults.full = ""
    assert predict_shards(asked(place, model)).done == (1,)
    assert merge(MergeOptions(place)).again == ()


def test_a_part_that_a_store_does_not_give_is_not_called_damaged(
    server: tuple[Faults, int], bucket: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults, _ = server
    monkeypatch.setattr(storage, "_FIRST_WAIT", 0.01)
    place = beside(bucket, "plan")
    make_plan(PlanOptions(bucket, place, 2))
    predict_shards(asked(place, model))
    faults.broken = "/part-00001.parquet"
    with pytest.raises(RunError, match=r"part-00001.parquet: cannot be read: in 5 tries: "):
        merge(MergeOptions(place))
    with pytest.raises(RunError, match=r"no plan in it; make one with: edgecls plan SOURCE -o s3://"):
        merge(MergeOptions(beside(bucket, "elsewhere")))


@pytest.mark.parametrize("address", ["hdfs://host/plan", "file:///plan", "http2://host/plan"])
def test_a_plan_lies_in_a_folder_or_an_object_store(address: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="expected a folder for the plan, or an address that begins with s3:// or"):
        make_plan(PlanOptions(str(tmp_path), address))


def test_a_plan_in_a_store_that_nobody_answers_for_is_told(
    server: object, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_FIRST_WAIT", 0.01)
    nowhere = "s3://b/plan?endpoint_override=127.0.0.1:1&scheme=http"
    with pytest.raises(RunError, match=r"--out s3://b/plan.*: cannot be listed, in 5 tries: .*check the address"):
        make_plan(PlanOptions(str(tmp_path), nowhere))
    with pytest.raises(RunError, match=r"s3://b/plan/plan.json: cannot be read, in 5 tries: .*check the address"):
        predict_shards(asked(nowhere, model))


def evaluated(data: str | Path, model: Path) -> EvaluateResult:
    return evaluate(EvaluateOptions(str(model), data, CPU)).result


def test_evaluation_of_a_bucket_is_that_of_its_files(bucket: str, model: Path, tmp_path: Path) -> None:
    stored, files = evaluated(bucket, model), evaluated(tmp_path / "local", model)
    assert stored.scores == files.scores
    assert (stored.scores.n, stored.data) == (60, bucket)
    assert stored.notes[0].startswith("60 images were fetched; a copy is kept in ")


def test_a_copy_is_brought_up_to_date(bucket: str) -> None:
    first = local_copy(bucket)
    filesystem, below = fs.FileSystem.from_uri(bucket)
    filesystem.delete_file(f"{below}/stripes/0.png")
    with filesystem.open_output_stream(f"{below}/stripes/2.png") as stream:
        stream.write(b"something else")
    second = local_copy(bucket)
    assert (second.path, second.notes[0][:23]) == (first.path, "1 images were fetched; ")
    assert (second.path / "stripes" / "2.png").read_bytes() == b"something else"
    assert len(list(second.path.rglob("*.png"))) == 59
    assert (second.path / "notes.txt").read_bytes() == b""  # no picture: it is only counted
    for number in range(1, 60, 2):
        filesystem.delete_file(f"{below}/checks/{number}.png")
    assert [each.name for each in local_copy(bucket).path.iterdir() if each.is_dir()] == ["stripes"]


def test_an_object_that_stays_broken_is_named_by_evaluate_and_inspect(
    server: tuple[Faults, int], bucket: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults, _ = server
    monkeypatch.setattr(storage, "_TRIES", 1)  # Arrow tries a few times itself, which takes seconds
    faults.broken = "/7.png"
    ((path, reason),) = evaluated(bucket, model).unreadable.items()
    assert path.endswith("/checks/7.png")
    assert "cannot be read, in 1 tries" in reason
    inspected = inspect(InspectOptions(bucket))
    ((broken, label, why),) = ((each.path, each.label, each.reason) for each in inspected.unreadable)
    assert (str(broken), label, why) == (path, "checks", reason)
    assert (inspected.n, inspected.unused) == (59, 1)
    faults.broken = ""
    assert evaluated(bucket, model).unreadable == {}  # it is asked for again


def test_keys_with_an_empty_part_are_listed_once(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow says of them that the folder is in itself."""
    store = open_store(bucket)
    below = bucket[5:].partition("?")[0]

    class Looping:
        def get_file_info(self, selector: Any) -> list[Any]:
            assert selector.base_dir == below
            return [
                fs.FileInfo(below, fs.FileType.Directory), fs.FileInfo(f"{below}/a.jpg", fs.FileType.File, size=1),
            ]  # fmt: skip

    monkeypatch.setattr(store, "_filesystem", Looping())
    assert [(each.name, bool(each.reason)) for each in store.files()] == [("a.jpg", False), ("//", True)]


def test_keys_with_an_empty_part_at_the_root_of_a_bucket_double_nothing() -> None:
    """There Arrow says `bucket/` for the folder in itself."""

    class Looping:
        def get_file_info(self, selector: Any) -> list[Any]:
            assert selector.base_dir == "bucket"
            return [
                fs.FileInfo("bucket/", fs.FileType.Directory), fs.FileInfo("bucket/a.jpg", fs.FileType.File, size=1),
            ]  # fmt: skip

    files = ArrowStore("s3://bucket", Looping(), "bucket").files()
    assert [(each.name, bool(each.reason)) for each in files] == [("a.jpg", False), ("//", True)]


def test_a_user_of_hdfs_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fs, "FileSystem", SimpleNamespace(from_uri=lambda address: (None, "photos")))
    assert open_store("hdfs://host:8020/photos?user=me@REALM").root.endswith("?user=me@REALM")


def test_whether_a_folder_of_a_bucket_is_there(bucket: str, model: Path) -> None:
    assert open_store(bucket).is_there()
    assert not open_store(beside(bucket, "nothing")).is_there()
    nowhere = bucket.replace("s3://bucket", "s3://nobucket")
    assert not open_store(nowhere).is_there()
    with pytest.raises(RunError, match=r"--out .*: cannot be listed, there is no bucket called nobucket\d+"):
        make_plan(PlanOptions(bucket, nowhere))


def test_a_bucket_may_be_called_like_a_tar_file(bucket: str) -> None:
    _, files = open_source(bucket.replace("/photos?", "?"))
    assert len(list(files())) == 61
    store, _ = open_source(f"s3://photos.tar?{bucket.partition('?')[2]}")
    assert store.root.startswith("s3://photos.tar?")


def test_a_tar_file_is_read_on_after_a_fault(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(tmp_path / "local", "")
    filesystem, below = fs.FileSystem.from_uri(bucket)
    with filesystem.open_output_stream(f"{below}/photos.tar") as stream:
        stream.write((tmp_path / "photos.tar").read_bytes())
    monkeypatch.setattr(storage, "_FIRST_WAIT", 0.01)
    store = open_store(bucket)
    monkeypatch.setattr(store, "open", partial(store.open, block=2048))
    opened = store._filesystem.open_input_file  # type: ignore[attr-defined]
    asked = 0

    class Failing:
        """Every third read fails."""

        def __init__(self, file: Any) -> None:
            self._file, self.size, self.close = file, file.size, file.close

        def read_at(self, n: int, at: int) -> bytes:
            nonlocal asked
            asked += 1
            if asked % 3 == 0:
                raise OSError("slow down")
            return bytes(self._file.read_at(n, at))

    class Faulty:
        def open_input_file(self, name: str) -> Failing:
            return Failing(opened(name))

    monkeypatch.setattr(store, "_filesystem", Faulty())
    inputs = list(inputs_of(store, [StoredFile("photos.tar", (tmp_path / "photos.tar").stat().st_size, 1)]))
    assert (len(inputs), [each.reason for each in inputs if each.reason]) == (60, [])
    assert asked > 60


def test_keys_that_are_no_file_names_stay_below_the_copy(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ArrowStore.files
    odd = ("stripes/../../../out.png", "/absolute.png", f"stripes/{'x' * 300}.png", "stripes/scan.png/page.png")
    monkeypatch.setattr(
        ArrowStore, "files", lambda self: iter([*(StoredFile(name, 0, 1) for name in odd), *found(self)])
    )
    monkeypatch.setattr(ArrowStore, "read", lambda self, name: b"a picture")
    copy = local_copy(bucket)
    assert len(list(copy.path.rglob("*.png"))) == 60
    assert not list(copy.path.parent.parent.rglob("out.png"))
    assert not Path("/absolute.png").exists()
    assert sorted(reason[:15] for reason in copy.reasons.values()) == ["cannot write /t", *3 * ["its name cannot"]]


def test_a_disk_that_is_too_small_for_a_copy_is_told_before_it_is_made(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(DatasetError, match="where 0 MB are free; make room, or set XDG_CACHE_HOME"):
        local_copy(bucket)


def test_what_cannot_be_listed_is_told(
    server: tuple[Faults, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, port = server
    monkeypatch.setattr(storage, "_FIRST_WAIT", 0.01)
    nowhere = f"s3://no-such-bucket/photos?endpoint_override=127.0.0.1:{port}&scheme=http"
    with pytest.raises(DatasetError, match="cannot be listed"):
        make_plan(PlanOptions(nowhere, tmp_path / "plan"))
    with pytest.raises(DatasetError, match="unknown in the address: endpoint_overide"):
        open_store("s3://bucket/photos?endpoint_overide=x")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (
            "s3://bucket/photos?endpoint=x",
            "unknown in the address: endpoint; expected endpoint_override, region, scheme",
        ),
        ("s3:///photos", "no bucket in the address"),
        ("s3://[x/photos", "cannot be opened: Invalid IPv6 URL"),
        ("s3://user:secret@bucket/photos", "has a secret in its address"),
        ("s3://user:abc/secret@bucket/photos", "has a secret in its address"),
        ("s3://bucket?access_key=a&secret_key=secret", "has a secret in its address"),
        ("s3://bucket?endpoint_override=user:secret@host&scheme=http", "has a secret in its address"),
        ("s3://bucket:80/photos", "no bucket in the address"),
        ("s3://bucket/photos//2024", "the address has an empty part"),
    ],
)
def test_addresses_that_are_wrong_are_told(address: str, words: str) -> None:
    with pytest.raises(DatasetError, match=words) as raised:
        open_store(address)
    assert "secret" not in str(raised.value).replace("has a secret", "")


def test_what_arrow_cannot_open_or_list_is_told_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def from_uri(address: str) -> tuple[Any, str]:
        asked.append(address)
        if address.startswith("hdfs"):
            raise OSError("Unable to load libjvm")
        return Refusing(), "bucket/photos"

    class Refusing:
        def get_file_info(self, selector: Any) -> list[Any]:
            raise OSError("UNAVAILABLE: no access token error_info={the same once more}")

    monkeypatch.setattr(fs, "FileSystem", SimpleNamespace(from_uri=from_uri))
    monkeypatch.setattr(storage, "_FIRST_WAIT", 0.01)
    with pytest.raises(DatasetError, match="Unable to load libjvm; HDFS needs Java and Hadoop: set JAVA_HOME"):
        open_store("hdfs://host/photos")
    with pytest.raises(DatasetError, match="no access token; check the address, and the credentials"):
        list(open_store("gs://bucket/photos").files())
    assert asked[1] == "gs://bucket/photos?retry_limit_seconds=1"  # or nobody's answer is awaited for a minute
    open_store("gs://bucket/photos?retry_limit_seconds=9")
    assert asked[2].endswith("?retry_limit_seconds=9")


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a store that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"s3://bucket/photos?endpoint_override=127.0.0.1:{listening.getsockname()[1]}&scheme=http"


def test_a_store_that_never_answers_is_not_waited_for(
    silent: str, server: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_TRIES", 1)
    monkeypatch.setattr(storage, "_SILENT_SECONDS", 1)
    started = time.perf_counter()
    with pytest.raises(DatasetError, match="cannot be listed"):
        make_plan(PlanOptions(silent, tmp_path / "plan"))
    assert time.perf_counter() - started < 20


WAITING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
from edgecls.cli import app
app(sys.argv[1:])
"""


def test_ctrl_c_ends_the_wait_for_a_store(silent: str, tmp_path: Path) -> None:
    environment = {
        **os.environ, "PYTHONPATH": str(Path(storage.__file__).parents[1]),
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    command = [sys.executable, "-c", WAITING, "plan", silent, "-o", str(tmp_path / "plan")]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as waiting:
        time.sleep(4)
        assert waiting.poll() is None
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(30) == 130  # what was asked is given up first, after ten seconds


def test_a_store_that_is_gone_ends_the_shard_and_leaves_no_part(
    server: tuple[Faults, int], bucket: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_plan(PlanOptions(bucket, tmp_path / "plan", 1))
    monkeypatch.setattr(storage, "_TRIES", 1)
    monkeypatch.setattr(
        "edgecls.scale.run.open_store",
        lambda source: open_store("s3://b/photos?endpoint_override=127.0.0.1:1&scheme=http"),
    )
    asked = PredictOptions(models=(str(model),), classifier=CPU, shards=ShardOptions(tmp_path / "plan"))
    with pytest.raises(DatasetError, match=r"nobody answers, the last \d+ files cannot be read, in 1 tries"):
        predict_shards(asked)
    assert merge(MergeOptions(tmp_path / "plan")).missing == (0,)


def test_a_tar_file_of_a_bucket_is_a_source(bucket: str, model: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(tmp_path / "local", "")
    filesystem, below = fs.FileSystem.from_uri(bucket)
    with filesystem.open_output_stream(f"{below}/photos.tar") as stream:
        stream.write((tmp_path / "photos.tar").read_bytes())
    address = bucket.replace("/photos?", "/photos/photos.tar?")
    assert rows(address, model, tmp_path / "s3.csv") == rows(tmp_path / "photos.tar", model, tmp_path / "file.csv")
    assert make_plan(PlanOptions(address, tmp_path / "plan", 2)).plan.n_inputs == 60


def test_file_addresses_are_folders(tmp_path: Path, model: Path) -> None:
    write_image(tmp_path / "photos" / "one.png", draw("stripes", 1))
    assert open_store(f"file://{tmp_path}/photos").root == str(tmp_path / "photos")
    assert len(rows(f"file://{tmp_path}/photos", model, tmp_path / "rows.csv")) == 2
    (tmp_path / "photos#2").mkdir()
    assert open_store(f"file://{tmp_path}/photos#2").root == str(tmp_path / "photos#2")

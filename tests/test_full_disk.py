"""A disk that is really full: what was finished stays, nothing half-written counts, and with room it goes on.

The disk is a small tmpfs; where none may be mounted, a limit on the size of files gives errors of the same kind.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import handmade
import pytest
import test_ingest
import test_train
from zenml.artifact_stores import BaseArtifactStore

from medflow import cli, predict
from medflow.errors import NO_ROOM, PlatformError, of_disk
from medflow.packing import Chunk, Item, Plan, finished, pack
from medflow.platform import context, stack, stored
from medflow.records import Generated, PixelSpec
from medflow.tracking import Files, LocalFiles
from medflow.twins import write_twin

MIB = 2**20


class Disk:
    """A disk of 64 MiB that can be filled up to a number of bytes, and freed again."""

    def __init__(self, root: Path, mounted: bool) -> None:
        self.root = root
        self.mounted = mounted
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, leave: int) -> None:
        if not self.mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (leave, self._limits[1]))
            return
        with (self.root / "ballast").open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, max(1, shutil.disk_usage(self.root).free - leave))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
        (self.root / "ballast").unlink(missing_ok=True)


@contextmanager
def small_disk(root: Path) -> Iterator[Disk]:
    root.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "medflow-test", str(root)]
    mounted = bool(shutil.which("mount")) and subprocess.run(command, capture_output=True).returncode == 0
    made = Disk(root, mounted)
    try:
        yield made
    finally:
        made.free()
        if mounted:
            subprocess.run(["umount", "--lazy", str(root)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk") as made:
        yield made


@pytest.fixture
def store() -> BaseArtifactStore:
    return stack.client().active_stack.artifact_store


@pytest.fixture
def store_disk(store: BaseArtifactStore, request: pytest.FixtureRequest) -> Iterator[Disk]:
    """A disk in the artifact store, which touches nothing outside its own folder."""
    with small_disk(Path(store.path, "tests", request.node.name)) as made:
        yield made


def left(folder: Path) -> list[str]:
    """Every file below, temporary ones included."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def told(error: BaseException) -> None:
    refused = of_disk(error)
    assert refused and "disk is full" in refused.message and refused.exit_code == 9


def test_a_twin_is_there_whole_or_not_at_all(disk: Disk) -> None:
    to = disk.root / "twin"
    disk.fill(300_000 if disk.mounted else 4_000)
    with pytest.raises(OSError) as caught:
        write_twin("covid_radiography", to, Generated(images=60))
    told(caught.value)
    disk.free()
    assert left(disk.root) == []
    write_twin("covid_radiography", to, Generated(images=60))
    assert len(left(to)) > 60


def test_packing_keeps_finished_chunks_and_goes_on(disk: Disk, tmp_path: Path) -> None:
    data = test_ingest.draw(tmp_path / "data", 20)
    plan = Plan(
        source="s", code="c", specs=(PixelSpec(height=128, width=128, channels=1),), masks=False, max_pixels=10**6
    )
    items = [Item(image_id=f"a{row:02d}", path=f"images/a{row:02d}.png", mask_path=None) for row in range(20)]
    first, second = (Chunk(number=number, items=tuple(items[10 * number :][:10])) for number in range(2))
    pack(first, plan, data, disk.root)
    before = {name: (disk.root / name).read_bytes() for name in left(disk.root)}
    disk.fill(100_000)  # a chunk's pixels are 164 kB
    with pytest.raises(OSError) as caught:
        pack(second, plan, data, disk.root)
    told(caught.value)
    disk.free()
    assert {name: (disk.root / name).read_bytes() for name in left(disk.root)} == before
    assert finished(first, plan, disk.root) and not finished(second, plan, disk.root)
    pack(second, plan, data, disk.root)
    assert finished(second, plan, disk.root)


def test_ingest_asks_for_room_before_it_begins(disk: Disk, tmp_path: Path) -> None:
    if not disk.mounted:
        pytest.skip("a limit on the size of files is no lack of room")
    data = test_ingest.draw(tmp_path / "data", 40)
    disk.fill(100_000)
    with pytest.raises(PlatformError, match=r"need 1\.3 MB of pixels, and .* has 0\.1 MB left"):
        test_ingest.run(data, disk.root / "work", sizes=(128,))
    disk.free()
    test_ingest.run(data, disk.root / "work", sizes=(128,))


def check_files(files: Files, disk: Disk) -> None:
    files.write("first", b"1" * MIB)
    disk.fill(MIB // 2)
    with pytest.raises(OSError) as caught:
        files.write("second", b"2" * MIB)
    told(caught.value)
    disk.free()
    assert left(disk.root) == files.names() == ["first"]
    files.write("second", b"2" * MIB)
    assert files.read("first") == b"1" * MIB and files.read("second") == b"2" * MIB


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(disk: Disk) -> None:
    check_files(LocalFiles(disk.root), disk)


def test_so_does_one_in_an_artifact_store(store: BaseArtifactStore, store_disk: Disk) -> None:
    check_files(context.StoredFiles(store, str(store_disk.root)), store_disk)


def test_training_on_a_disk_that_fills_up_ends_with_the_same_weights(disk: Disk, tmp_path: Path) -> None:
    whole = test_train.digest(test_train.run(tmp_path / "whole", test_train.QUICK))
    sizes = []

    class Filling(LocalFiles):
        def write(self, name: str, data: bytes) -> None:
            if len(sizes) == 3:
                disk.fill(len(data) // 2)
            sizes.append(len(data))
            super().write(name, data)

    def train(files: LocalFiles) -> str:
        parts = test_train.tiny.make(tmp_path / "pixels", rows=36)
        arguments = ((test_train.tiny.LABELS,), test_train.MODEL, test_train.QUICK)
        return test_train.digest(
            test_train.train(*parts, *arguments, work=tmp_path / "work", tracker=test_train.Silent(), checkpoints=files)
        )

    with pytest.raises(OSError) as caught:
        train(Filling(disk.root / "checkpoints"))
    told(caught.value)
    disk.free()
    assert len(left(disk.root / "checkpoints")) == 2
    assert train(LocalFiles(disk.root / "checkpoints")) == whole


def test_an_artifact_without_room_is_never_taken_for_whole(store: BaseArtifactStore, store_disk: Disk) -> None:
    uri, files = str(store_disk.root), {"a.bin": b"a" * MIB, "b.bin": b"b" * MIB}
    store_disk.fill(MIB + MIB // 2 if store_disk.mounted else MIB // 2)
    with pytest.raises(OSError) as caught:
        stored.write_files(store, uri, files)
    told(caught.value)
    store_disk.free()
    assert stored.quick_check(store, uri, "0" * 64) == "index.json is missing"
    index = stored.write_files(store, uri, files)
    assert stored.full_check(store, uri, index.sha256()) is None


def test_predictions_are_written_whole(disk: Disk, tmp_path: Path) -> None:
    bundle = handmade.bundle(tmp_path / "bundle")
    paths = []
    for number in range(12):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(handmade.image_file(20 * number, size=(600, 500)))
    earlier = predict.predict(bundle, paths[:1], disk.root / "out")
    before = {name: (disk.root / "out" / name).read_bytes() for name in left(disk.root / "out")}
    disk.fill(6_000 if disk.mounted else 500)
    with pytest.raises(OSError) as caught:
        predict.predict(bundle, paths, disk.root / "out")
    told(caught.value)
    disk.free()
    assert {name: (disk.root / "out" / name).read_bytes() for name in before} == before
    assert not [name for name in left(disk.root / "out") if name.endswith(".part")]
    assert predict.predict(bundle, paths, disk.root / "out").images == 12 > earlier.images


@pytest.mark.parametrize("verb", [("runs",), ("run", "phantom", "train.epochs=1")])
def test_a_state_folder_without_room_is_one_line_and_a_hint(disk: Disk, verb: tuple[str, ...]) -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("ZENML_", "MLFLOW_"))}
    environment = variables | {"MEDFLOW_HOME": str(disk.root / "home"), "PYTHONPATH": str(test_ingest.ROOT)}
    disk.fill(0 if disk.mounted else 100)
    command = [sys.executable, "-m", cli.__name__, *verb]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    disk.free()
    errors = [line for line in ended.stderr.splitlines() if line.startswith(("error:", "hint:"))]
    assert ended.returncode == 9, ended.stderr
    assert len(errors) == 2 and "disk is full" in errors[0] and "MEDFLOW_HOME" in errors[1]
    assert not ended.stdout


def test_what_is_no_error_of_the_disk_is_left_alone() -> None:
    assert of_disk(FileNotFoundError(2, "No such file or directory", "x")) is None
    assert of_disk(ValueError("wrong")) is None
    for number in NO_ROOM:
        wrapped = RuntimeError("a step failed")
        wrapped.__cause__ = OSError(number, os.strerror(number))
        told(wrapped)

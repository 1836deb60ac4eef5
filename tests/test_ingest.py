from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.fftpack import dct

from medflow import datasets, pool
from medflow.config.sections import IngestConfig
from medflow.datasets import DatasetSpec, Listing, Planted, Row
from medflow.errors import ConfigError, DataError, PlatformError
from medflow.facts import measure, perceptual_hash
from medflow.ingest import ingest
from medflow.pixels import open_store
from medflow.preprocess import read_mask, to_pixels
from medflow.records import (
    MANIFEST_COLUMNS,
    DatasetCard,
    Finding,
    Generated,
    HeadSpec,
    Manifest,
    Pixels,
    Source,
)

ROOT = Path(__file__).parents[1]
SAMPLES = Path(os.environ.get("MEDFLOW_SAMPLES", ROOT.parent / "shared" / "data"))

CARD = DatasetCard(
    name="small",
    title="A folder of pictures",
    heads=(
        HeadSpec(kind="exclusive", name="finding", labels=("no", "yes")),
        HeadSpec(kind="mask", name="lung", labels=("lung",)),
    ),
    channels=1,
    grouped_by="near-duplicates",
)
STRAY = Finding(check="stray_file", severity="info", message="a file of another kind", count=1, examples=("notes.md",))


def listing(root: Path) -> Listing:
    """Files of ``images``, in no order; a mask is named like its image."""
    rows = [_row(path, root) for path in (root / "images").iterdir()]
    return Listing(tuple(sorted(rows, key=lambda row: row.path[::-1])), findings=(STRAY,))


def _row(path: Path, root: Path) -> Row:
    mask = f"masks/{path.stem}.png"
    return Row(
        image_id=path.stem,
        path=f"images/{path.name}",
        labels={"finding.no": 1, "finding.yes": None if path.stem.endswith("3") else 0},
        mask_path=mask if (root / mask).exists() else None,
        group="patient-1" if path.stem == "a00" else None,
        age=31.5,
    )


def twin(root: Path, request: Generated) -> Planted:
    draw(root, request.images, request.seed)
    return Planted()


SPEC = DatasetSpec(card=CARD, listing=listing, twin=twin)


def draw(root: Path, images: int, seed: int = 0, size: tuple[int, int] = (60, 44)) -> Path:
    rng = np.random.default_rng(seed)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(images):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5), dtype=np.uint8)).resize(size, Image.BICUBIC)
        coarse.save(root / "images" / f"a{number:02d}.png")
        if number % 3:
            coarse.resize((40, 30)).point(lambda value: 255 if value > 140 else 0).save(
                root / "masks" / f"a{number:02d}.png"
            )
    return root


def source(root: Path, fingerprint: str = "1") -> Source:
    return Source(kind="folder", fingerprint=fingerprint, uri=str(root))


def run(root: Path, work: Path, *, sizes: tuple[int, ...] = (32,), **options: object) -> tuple[Manifest, Pixels]:
    workers = options.pop("workers", 1)
    return ingest(source(root), SPEC, sizes, IngestConfig(**options), work, workers=workers)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.npy"))}


# -- what comes out ------------------------------------------------------------------------------


def test_pixels_and_masks_are_those_that_serving_makes(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", 40)
    manifest, pixels = run(data, tmp_path / "work", sizes=(48, 32), fit="pad", extra_sizes=(20, 32))
    assert [store.spec.height for store in pixels.index.stores] == [20, 32, 48]
    assert pixels.index.rows == len(manifest) == 40
    for store in pixels.index.stores:
        opened = open_store(pixels, store.spec.height)
        images, masks = opened.images(manifest.pixel_rows()), opened.masks(manifest.pixel_rows())
        for row, image, mask in zip(manifest.table.to_pylist(), images, masks, strict=True):
            assert (image == to_pixels((data / row["path"]).read_bytes(), store.spec)).all()
            if row["mask_path"]:
                expected = read_mask((data / row["mask_path"]).read_bytes(), store.spec, image_size=(60, 44))
                assert (mask == expected).all() and mask.any()
            else:
                assert not mask.any()


def test_the_manifest_has_its_columns_sorted_rows_and_the_listings_findings(tmp_path: Path) -> None:
    manifest, _ = run(draw(tmp_path / "data", 7), tmp_path / "work")
    labels = ["finding.no", "finding.yes"]
    assert manifest.table.column_names == [*MANIFEST_COLUMNS, *labels]
    kinds = {field.name: str(field.type) for field in manifest.table.schema}
    wanted = {name: kind.replace("float32", "float") for name, kind in MANIFEST_COLUMNS.items()}  # Arrow's own word
    assert kinds == wanted | dict.fromkeys(labels, "int8")
    assert list(manifest.column("image_id")) == [f"a{number:02d}" for number in range(7)]
    assert manifest.column("group")[:2].tolist() == ["patient-1", "a01"]
    assert manifest.column("finding.yes").tolist() == [0, 0, 0, None, 0, 0, 0]
    assert manifest.column("pixel_row").tolist() == list(range(7))
    assert manifest.findings == (STRAY,) and manifest.take([1]).findings == (STRAY,)
    assert manifest.has_mask().tolist() == [False, True, True, False, True, True, False]


def test_facts_are_those_of_the_file(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", 2)
    row = run(data, tmp_path / "work")[0].table.to_pylist()[1]
    values = np.asarray(Image.open(data / row["path"])).astype(np.float64)
    assert (row["width"], row["height"], row["mode"]) == (60, 44, "L")
    assert row["bytes"] == (data / row["path"]).stat().st_size
    assert (row["mean"], row["std"]) == (pytest.approx(values.mean()), pytest.approx(values.std()))
    mask = np.asarray(Image.open(data / row["mask_path"])) > 127
    assert (row["mask_width"], row["mask_height"]) == (40, 30)
    assert row["mask_fraction"] == pytest.approx(mask.mean())
    assert row["age"] == 31.5


def test_a_dataset_without_a_mask_head_stores_no_masks(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", 3)
    spec = DatasetSpec(
        card=CARD.model_copy(update={"heads": CARD.heads[:1], "channels": 3}), listing=listing, twin=twin
    )
    _, pixels = ingest(source(data), spec, (16,), IngestConfig(), tmp_path / "work", workers=1)
    assert pixels.index.stores[0].masks == ()
    assert open_store(pixels, 16).images(np.arange(3)).shape == (3, 16, 16, 3)


def test_a_generated_source_is_made_once(tmp_path: Path) -> None:
    generated = Source(kind="generated", fingerprint="g", generated=Generated(images=5, seed=3))
    first, _ = ingest(generated, SPEC, (16,), IngestConfig(), tmp_path, workers=1)
    again, _ = ingest(generated, SPEC, (16,), IngestConfig(), tmp_path, workers=1)
    assert len(first) == 5 and first.digest() == again.digest()
    assert len([path for path in (tmp_path / "twins").iterdir() if path.is_dir()]) == 1


# -- what is broken ------------------------------------------------------------------------------


def break_some(data: Path) -> dict[str, str]:
    """Image id → a word that its error must hold."""
    images = data / "images"
    whole = (images / "a05.png").read_bytes()
    (images / "a05.png").write_bytes(whole[: len(whole) // 2])
    (images / "a06.png").write_text("this is text")
    (images / "a07.png").unlink()
    (images / "a07.png").symlink_to("nowhere.png")
    huge = BytesIO()
    Image.new("1", (2000, 1000)).save(huge, "PNG")
    (images / "a08.png").write_bytes(huge.getvalue())
    return {"a05": "cut short", "a06": "no image", "a07": "cannot be read", "a08": "more than"}


def test_broken_images_become_rows_with_an_error_and_no_pixels(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", 12)
    sound, sound_pixels = run(data, tmp_path / "sound")
    broken = break_some(data)
    manifest, pixels = run(data, tmp_path / "work", max_pixels=1_000_000)
    assert pixels.index.rows == 8
    rows = {row["image_id"]: row for row in manifest.table.to_pylist()}
    for image_id, word in broken.items():
        assert word in rows[image_id]["error"] and rows[image_id]["pixel_row"] is None
        assert (rows[image_id]["sha256"] is None) == (image_id == "a07")
        assert str(tmp_path) not in rows[image_id]["error"]
    good = [number for number, row in enumerate(manifest.table.to_pylist()) if row["error"] is None]
    expected = open_store(sound_pixels, 32).images(sound.take(good).pixel_rows())
    assert (open_store(pixels, 32).images(manifest.take(good).pixel_rows()) == expected).all()


def test_a_broken_mask_leaves_the_image_usable(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", 6)
    (data / "masks" / "a01.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    manifest, pixels = run(data, tmp_path / "work")
    row = manifest.table.to_pylist()[1]
    assert row["mask_error"] and row["error"] is None and row["mask_fraction"] is None
    assert manifest.has_mask().tolist() == [False, False, True, False, True, True]
    assert not open_store(pixels, 32).masks(np.array([1])).any()


def test_a_listed_path_may_not_leave_the_data_folder(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", 1)
    Image.new("L", (9, 9)).save(tmp_path / "secret.png")
    row = Row(image_id="x", path="../secret.png", labels={"finding.no": 1, "finding.yes": 0})
    spec = DatasetSpec(card=CARD, listing=lambda root: Listing((row,)), twin=twin)
    manifest, pixels = ingest(source(data), spec, (16,), IngestConfig(), tmp_path / "work", workers=1)
    assert "leaves the data folder" in manifest.table.to_pylist()[0]["error"]
    assert pixels.index.rows == 0 and pixels.index.stores[0].images == ()


def test_what_a_listing_may_not_say(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", 1)
    labels = {"finding.no": 1, "finding.yes": 0}
    twice = (Row(image_id="x", path="a", labels=labels), Row(image_id="x", path="b", labels=labels))
    odd = (Row(image_id="x", path="a", labels={"finding.no": 1}),)
    for rows, words in ((twice, "image id 'x': a and b"), (odd, "finding.yes"), ((), "no image")):
        spec = DatasetSpec(card=CARD, listing=lambda root, rows=rows: Listing(rows), twin=twin)
        with pytest.raises(DataError, match=words):
            ingest(source(data), spec, (16,), IngestConfig(), tmp_path / "work", workers=1)
    with pytest.raises(ConfigError, match="no size"):
        run(data, tmp_path / "work", sizes=())


# -- the same whatever the machine, and whatever happens -----------------------------------------


def test_two_workers_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", 80)
    break_some(data)
    one = run(data, tmp_path / "one", workers=1)
    two = run(data, tmp_path / "two", workers=2)
    assert len(one[1].index.stores[0].images) == 3
    assert files(one[1].root) == files(two[1].root)
    assert [record.digest() for record in one] == [record.digest() for record in two]


def test_finished_chunks_are_kept_and_damaged_or_outdated_ones_done_again(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", 80)
    _, pixels = run(data, tmp_path / "work")
    shards = [pixels.root / shard.path for shard in pixels.index.stores[0].images]
    before = files(pixels.root)
    times = [path.stat().st_mtime_ns for path in shards]
    shards[1].write_bytes(before[pixels.index.stores[0].images[1].path][:-5])
    (pixels.root / "rows-00002.json").write_text('{"key": ')
    run(data, tmp_path / "work")
    assert files(pixels.root) == before
    changed = [path.stat().st_mtime_ns != old for path, old in zip(shards, times, strict=True)]
    assert changed == [False, True, True]


def test_another_source_or_setting_never_meets_old_chunks(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", 5)
    first = run(data, tmp_path / "work")[1]
    assert run(data, tmp_path / "work", fit="pad")[1].root != first.root
    other = ingest(source(data, "2"), SPEC, (32,), IngestConfig(), tmp_path / "work", workers=1)[1]
    assert other.root != first.root and other.digest() == first.digest()


def test_a_listing_that_names_other_files_never_meets_old_chunks(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", 4)
    run(data, tmp_path / "work")
    rows = [_row(data / "images" / f"a0{number}.png", data) for number in (3, 1, 2, 0)]
    turned = tuple(replace(row, image_id=f"b{place}") for place, row in enumerate(rows))
    spec = DatasetSpec(card=CARD, listing=lambda root: Listing(turned), twin=twin)
    manifest, pixels = ingest(source(data), spec, (32,), IngestConfig(), tmp_path / "work", workers=1)
    first = open_store(pixels, 32).images(manifest.pixel_rows()[:1])[0]
    assert (first == to_pixels((data / "images" / "a03.png").read_bytes(), pixels.index.stores[0].spec)).all()


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}

if __name__ == "__main__":
    import test_ingest

    test_ingest.run(Path({data!r}), Path({work!r}), workers={workers})
"""


def in_a_process(data: Path, work: Path, workers: int) -> subprocess.Popen:
    path = [str(ROOT), str(ROOT / "tests")]
    script = work.with_suffix(".py")
    script.write_text(SCRIPT.format(path=path, data=str(data), work=str(work), workers=workers))
    return subprocess.Popen([sys.executable, script], stderr=subprocess.DEVNULL)


def test_killed_midway_it_goes_on_where_it_was(tmp_path: Path) -> None:
    data, work = many_large(tmp_path / "data"), tmp_path / "work"
    process = in_a_process(data, work, workers=2)
    wait_until(lambda: len(list(work.rglob("rows-*.json"))) >= 2 or process.poll() is not None)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(workers) >= 2
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    done = {path: path.stat().st_mtime_ns for path in work.rglob("rows-*.json")}
    done |= {
        shard: shard.stat().st_mtime_ns for row in list(done) for shard in row.parent.rglob(f"*-{row.stem[5:]}.npy")
    }
    assert 2 * 3 <= len(done) < 3 * 8, "the kill came too late to say anything"

    manifest, pixels = run(data, work)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert not list(work.rglob("*.part"))
    whole = run(data, tmp_path / "uninterrupted")
    assert (manifest.digest(), pixels.digest()) == (whole[0].digest(), whole[1].digest())
    assert files(pixels.root) == files(whole[1].root)


def many_large(data: Path) -> Path:
    """256 images in eight chunks, each large enough that a chunk takes a while."""
    draw(data, 2, size=(700, 600))
    for number in range(2, 256):
        for folder in ("images", "masks"):
            os.link(data / folder / "a01.png", data / folder / f"a{number:03d}.png")
    return data


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(condition: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def test_two_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    data, work = draw(tmp_path / "data", 64, size=(400, 300)), tmp_path / "work"
    process = in_a_process(data, work, workers=1)
    wait_until(lambda: list(work.rglob("*.part")) or process.poll() is not None)
    manifest, pixels = run(data, work)
    assert process.wait() == 0
    assert pixels.index.rows == len(manifest) == 64
    open_store(pixels, 32).images(manifest.pixel_rows())


def test_a_worker_that_dies_is_told(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="worker process died"):
        list(pool.run(os._exit, [(9,), (9,)], workers=2))


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", 3)
    _, pixels = run(data, tmp_path / "work")
    shutil.rmtree(pixels.root / "32x32")
    (pixels.root / "32x32").write_text("in the way")
    with pytest.raises(PlatformError, match="cannot be written"):
        run(data, tmp_path / "work")


# -- the perceptual hash -------------------------------------------------------------------------


def imagehash_phash(gray: Image.Image) -> int:
    """The published algorithm, in the words of the imagehash package."""
    values = np.asarray(gray.resize((32, 32), Image.Resampling.LANCZOS))
    low = dct(dct(values, axis=0), axis=1)[:8, :8]
    return int("".join("1" if bit else "0" for bit in (low > np.median(low)).ravel()), 2)


def bits(first: str, second: str) -> int:
    return (int(first, 16) ^ int(second, 16)).bit_count()


@pytest.mark.parametrize("size", [(32, 32), (50, 60), (299, 299), (1300, 900)])
def test_the_perceptual_hash_is_that_of_imagehash(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        gray = Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8)).resize(size, Image.BICUBIC)
        limit = 0 if max(size) < 64 else 4
        assert bits(perceptual_hash(gray), f"{imagehash_phash(gray):016x}") <= limit


def test_near_duplicates_hash_alike_and_others_do_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    first, other = (
        Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8)).resize((300, 260), Image.BICUBIC)
        for _ in range(2)
    )
    stream = BytesIO()
    first.resize((250, 217), Image.BILINEAR).save(stream, "JPEG", quality=70)
    assert bits(perceptual_hash(first), perceptual_hash(Image.open(stream))) <= 3
    assert bits(perceptual_hash(first), perceptual_hash(other)) > 16


def test_a_blank_image_has_plain_facts() -> None:
    facts = measure(Image.new("L", (40, 30), 77))
    assert (facts.mean, facts.std, facts.blur) == (77, 0, 0)
    hashes = {perceptual_hash(Image.new("L", (31 + value, 90), value)) for value in range(1, 256)}
    assert hashes == {facts.phash}


# -- real samples and their twins ----------------------------------------------------------------


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="real samples are not here")
@pytest.mark.parametrize(
    ("name", "images"), [("covid_radiography", 80), ("chest_xray_pneumonia", 89), ("lung_disease", 173)]
)
def test_real_samples_go_through(name: str, images: int, tmp_path: Path) -> None:
    spec = datasets.get(name)
    manifest, pixels = ingest(source(SAMPLES / name), spec, (64, 32), IngestConfig(), tmp_path, workers=1)
    assert len(manifest) == pixels.index.rows == images
    assert not any(manifest.column("error"))
    assert set(manifest.column("mode")) == {"L", "RGB"}
    if spec.card.mask_head():
        rows = manifest.take(np.flatnonzero(manifest.has_mask())).pixel_rows()
        assert len(rows) == 3
        shares = open_store(pixels, 64).masks(rows).mean(axis=(1, 2))
        assert ((shares > 0.1) & (shares < 0.6)).all()


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="real samples are not here")
def test_real_duplicates_have_the_same_facts(tmp_path: Path) -> None:
    spec = datasets.get("chest_xray_pneumonia")
    manifest, _ = ingest(source(SAMPLES / spec.card.name), spec, (16,), IngestConfig(), tmp_path, workers=1)
    twins = [row for row in manifest.table.to_pylist() if "person1430_bacteria_369" in row["path"]]
    assert len(twins) == 2 and len({(row["sha256"], row["phash"], row["mean"]) for row in twins}) == 1

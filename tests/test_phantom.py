"""What is drawn: anatomy, patients, masks, reports, lesions; that it repeats, and that it can be learned."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflow import datasets
from medflow.datasets import phantom
from medflow.datasets._lesions import Lesion, photograph
from medflow.datasets._patients import MOST_IMAGES, SITES, Stream, exposed, shots, stream
from medflow.datasets._synthesis import Anatomy, Opacity, Pathology, Scanner, radiograph
from medflow.errors import DataError
from medflow.records import Generated
from medflow.twins import write_twin

SHAPE = (96, 96)
PLAIN_SCANNER = Scanner(gain=1.0, gamma=1.0, noise=0.0, grid=0.0, pitch=20.0, marker=(-0.88, -0.8))
seeds = st.integers(0, 2**31 - 1)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "twin"
    write_twin("phantom", root, Generated(images=200, seed=7))
    return root


def drawn(pathology: Pathology, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return radiograph(Anatomy.draw(rng), pathology, PLAIN_SCANNER, SHAPE, rng).image.astype(float)


# -- images --------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=seeds, height=st.integers(32, 160), width=st.integers(32, 160))
def test_a_radiograph_is_well_formed(seed: int, height: int, width: int):
    rng = np.random.default_rng(seed)
    seen = radiograph(Anatomy.draw(rng), Pathology(), Scanner.draw(rng), (height, width), rng)
    assert seen.image.shape == seen.lungs.shape == (height, width)
    assert seen.image.dtype == seen.lungs.dtype == np.uint8
    assert seen.image.std() > 15, "not blank"
    assert 0.08 < seen.lungs.mean() < 0.6
    lungs, rest = seen.image[seen.lungs == 1], seen.image[seen.lungs == 0]
    assert np.median(lungs) < np.percentile(rest, 75), "air is darker than tissue"


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_the_mask_has_a_lung_on_either_side(seed: int):
    rng = np.random.default_rng(seed)
    lungs = radiograph(Anatomy.draw(rng), Pathology(), Scanner.draw(rng), (128, 128), rng).lungs
    _, _, stats, _ = cv2.connectedComponentsWithStats(lungs)
    large = [row for row in stats[1:] if row[cv2.CC_STAT_AREA] > 400]
    assert len(large) == 2
    left, right = sorted(row[cv2.CC_STAT_LEFT] for row in large)
    assert left < 64 <= right + 16


@settings(max_examples=25, deadline=None)
@given(seed=seeds, strength=st.floats(0.3, 1.0), side=st.sampled_from([-1, 1]), ragged=st.sampled_from([0.0, 1.0]))
def test_an_opacity_whitens_its_own_lung(seed: int, strength: float, side: int, ragged: float):
    opacity = Opacity(side=side, across=0.5, down=0.4, radius=0.2, strength=strength, ragged=ragged)
    change = drawn(Pathology(opacities=(opacity,)), seed) - drawn(Pathology(), seed)
    assert change.min() > -3.0, "an opacity never darkens"
    half = SHAPE[1] // 2
    own, other = (change[:, :half], change[:, half:]) if side < 0 else (change[:, half:], change[:, :half])
    assert own.sum() > 10 * other.sum() and own.max() > 10


@settings(max_examples=15, deadline=None)
@given(seed=seeds, weak=st.floats(0.1, 0.4), more=st.floats(0.1, 0.5))
def test_a_stronger_finding_changes_more(seed: int, weak: float, more: float):
    def whitening(strength: float) -> float:
        opacity = Opacity(side=1, across=0.6, down=0.4, radius=0.2, strength=strength, ragged=1.0)
        return (drawn(Pathology(opacities=(opacity,)), seed) - drawn(Pathology(), seed)).sum()

    assert whitening(weak) < whitening(weak + more)


def test_every_kind_of_finding_is_visible():
    healthy = drawn(Pathology())
    for ill in (Pathology(effusion=(0.3, 0.0)), Pathology(haze=0.4), Pathology(heart=1.4)):
        assert np.abs(drawn(ill) - healthy).mean() > 1.0


@settings(max_examples=20, deadline=None)
@given(seed=seeds, ragged=st.floats(0, 1), mottled=st.floats(0, 1))
def test_a_lesion_is_darker_than_its_skin(seed: int, ragged: float, mottled: float):
    rng = np.random.default_rng(seed)
    lesion = Lesion.draw(rng, ragged=ragged, dark=0.9, mottled=mottled)
    seen = photograph(lesion, SHAPE, np.random.default_rng(seed))
    again = photograph(lesion, SHAPE, np.random.default_rng(seed))
    assert seen.image.shape == (*SHAPE, 3) and np.array_equal(seen.image, again.image)
    assert 0.005 < seen.outline.mean() < 0.7
    assert seen.image[seen.outline == 1].mean() < seen.image[seen.outline == 0].mean()


# -- patients ------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=seeds, images=st.integers(1, 120))
def test_patients_have_one_to_four_images(seed: int, images: int):
    taken = shots(seed, images, phantom.SHARES, phantom._ill)
    assert [shot.index for shot in taken] == list(range(images))
    turns = defaultdict(list)
    for shot in taken:
        turns[shot.patient.number].append(shot.turn)
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in turns.values())
    assert max(len(numbers) for numbers in turns.values()) <= MOST_IMAGES
    assert sorted(turns) == list(range(1, len(turns) + 1))


@settings(max_examples=20, deadline=None)
@given(seed=seeds, images=st.integers(12, 200))
def test_labels_keep_their_shares(seed: int, images: int):
    counts = Counter(shot.patient.label for shot in shots(seed, images, phantom.SHARES, phantom._ill))
    for label, share in phantom.SHARES.items():
        assert abs(counts[label] - share * images) <= MOST_IMAGES


@settings(max_examples=15, deadline=None)
@given(seed=seeds, fewer=st.integers(5, 60), more=st.integers(1, 60))
def test_more_images_leave_the_first_as_they_were(seed: int, fewer: int, more: int):
    short = shots(seed, fewer, phantom.SHARES, phantom._ill)
    assert shots(seed, fewer + more, phantom.SHARES, phantom._ill)[:fewer] == short
    last = short[-1]
    assert np.array_equal(exposed(seed, last, SHAPE).image, exposed(seed, last, SHAPE).image)


def test_two_images_of_a_patient_differ_and_two_patients_differ_more():
    taken = shots(3, 120, phantom.SHARES, phantom._ill)
    seen = [cv2.GaussianBlur(exposed(3, shot, SHAPE).image, (0, 0), 2).astype(float) for shot in taken]
    same, other = [], []
    for place, shot in enumerate(taken[:-1]):
        following = taken[place + 1]
        distance = np.abs(seen[place] - seen[place + 1]).mean()
        (same if shot.patient.number == following.patient.number else other).append(distance)
    assert min(same) > 1.0
    assert np.mean(same) < np.mean(other)


def test_nothing_about_site_or_person_tells_the_label():
    taken = shots(0, 4000, phantom.SHARES, phantom._ill)
    patients = {shot.patient.number: shot.patient for shot in taken}.values()
    for label, share in phantom.SHARES.items():
        for site in SITES:
            here = [patient.label == label for patient in patients if patient.site == site]
            assert abs(np.mean(here) - share) < 0.06
        for sex in ("F", "M"):
            assert abs(np.mean([patient.label == label for patient in patients if patient.sex == sex]) - share) < 0.05
    ages = [np.mean([patient.age for patient in patients if patient.label == label]) for label in phantom.SHARES]
    assert max(ages) - min(ages) < 3


# -- the dataset ---------------------------------------------------------------------------------


def test_images_of_a_patient_share_diagnosis_site_and_age(twin: Path):
    facts = defaultdict(set)
    for row in datasets.get("phantom").listing(twin).rows:
        facts[row.group].add((row.site, row.age, row.sex, tuple(row.labels.items())))
    assert {len(values) for values in facts.values()} == {1}
    assert len(facts) > 60


def test_reports_agree_with_signs(twin: Path):
    negated = 0
    for row in datasets.get("phantom").listing(twin).rows:
        if row.text is None:
            continue
        text = row.text
        assert row.view is not None and text.startswith(row.view)
        assert ("Patchy opacity" in text) == bool(row.labels["signs.consolidation"])
        assert ("Pleural effusion with" in text) == bool(row.labels["signs.effusion"])
        assert ("Round, well-defined" in text) == bool(row.labels["signs.round_shadow"])
        assert ("heart is enlarged" in text) == bool(row.labels["signs.large_heart"])
        for sign, denial in (("effusion", "No pleural effusion"), ("consolidation", "No focal consolidation")):
            assert denial not in text or not row.labels[f"signs.{sign}"]
        negated += "No " in text
    assert negated > 50


def test_signs_are_not_the_diagnosis_over_again(twin: Path):
    """Some ill patients show nothing plain: no reader of pixels reaches an AUROC of 1."""
    rows = datasets.get("phantom").listing(twin).rows
    pneumonia = [row for row in rows if row.labels["diagnosis.pneumonia"]]
    hidden = [row for row in pneumonia if not row.labels["signs.consolidation"]]
    assert 0 < len(hidden) < len(pneumonia) / 4


@pytest.mark.parametrize("column", phantom.COLUMNS)
def test_a_table_without_a_column_is_refused(column: str, tmp_path: Path):
    (tmp_path / "images").mkdir()
    header = [name for name in phantom.COLUMNS if name != column]
    (tmp_path / "phantom.csv").write_text(",".join(header) + "\n")
    with pytest.raises(DataError, match=column):
        datasets.get("phantom").listing(tmp_path)


def test_a_missing_table_is_refused(tmp_path: Path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"phantom\.csv"):
        datasets.get("phantom").listing(tmp_path)


def test_table_and_folder_that_disagree_are_told(tmp_path: Path):
    write_twin("phantom", tmp_path / "twin", Generated(images=24))
    root = tmp_path / "twin"
    with (root / "phantom.csv").open(newline="") as lines:
        records = list(csv.DictReader(lines))
    (root / "images" / records[0]["image"]).unlink()
    records[2]["age"] = ""
    with (root / "phantom.csv").open("w", newline="") as lines:
        writer = csv.DictWriter(lines, phantom.COLUMNS)
        writer.writeheader()
        writer.writerows([records[0], *records[2:], records[3]])
    listing = datasets.get("phantom").listing(root)
    assert {finding.check: finding.count for finding in listing.findings} == {
        "file_missing": 1,
        "row_missing": 1,
        "row_repeated": 1,
        "stray_file": 1,  # the mask of the image that has no row
    }
    assert len(listing.rows) == 22
    assert [row.age for row in listing.rows if row.path.endswith(records[2]["image"])] == [None]


def test_an_impossible_age_names_the_image(tmp_path: Path):
    write_twin("phantom", tmp_path / "twin", Generated(images=24))
    table = tmp_path / "twin" / "phantom.csv"
    head, first, *rest = table.read_text().splitlines()
    cells = first.split(",")
    cells[phantom.COLUMNS.index("age")] = "old"
    table.write_text("\n".join([head, ",".join(cells), *rest]))
    with pytest.raises(DataError, match=cells[0]):
        datasets.get("phantom").listing(tmp_path / "twin")


def test_it_can_be_learned_from_pixels(twin: Path):
    """A linear model on the spread of gray values in the lungs beats chance on unseen patients by far."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = datasets.get("phantom").listing(twin).rows
    images = [cv2.imread(str(twin / row.path), cv2.IMREAD_GRAYSCALE).astype(float) for row in rows]
    masks = [cv2.imread(str(twin / str(row.mask_path)), cv2.IMREAD_GRAYSCALE) > 0 for row in rows]
    levels = (5, 25, 50, 75, 95)
    features = np.array(
        [
            [*np.diff(np.percentile(image[mask], levels)), image[mask].std(), image[mask].mean() - image.mean()]
            for image, mask in zip(images, masks, strict=True)
        ]
    )
    ill = np.array([1 - int(row.labels["diagnosis.clear"] or 0) for row in rows])
    patients = np.array([int((row.group or "P0")[1:]) for row in rows])
    held_out = patients % 3 == 0
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(features[~held_out], ill[~held_out])
    score = roc_auc_score(ill[held_out], model.predict_proba(features[held_out])[:, 1])
    assert 0.7 < score < 0.99


@given(seed=seeds, kind=st.sampled_from(Stream), number=st.integers(0, 10_000))
def test_random_streams_are_named(seed: int, kind: Stream, number: int):
    first = stream(seed, kind, number).random()
    assert first == stream(seed, kind, number).random() != stream(seed, kind, number + 1).random()

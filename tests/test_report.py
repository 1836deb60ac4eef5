"""Figures and pages: pictures that decode, numbers behind them, documents that need nothing else."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import handmade
import numpy as np
import pytest
import scored
from PIL import Image

from medflow import evaluate as evaluating
from medflow import report
from medflow.config.sections import EvaluateConfig, PromoteConfig
from medflow.lineage import Ancestor
from medflow.promote import promote
from medflow.records import (
    Challenge,
    ChannelStats,
    Choice,
    Comparison,
    EpochLog,
    Finding,
    Findings,
    LabelCounts,
    Normalization,
    PackageFacts,
    Parity,
    Predictions,
    TrainingLog,
    Verdict,
)
from medflow.report import figure, html

HEAD = handmade.DIAGNOSIS
LOG = TrainingLog(
    seed=1, best_epoch=2, best_score=0.8, monitor="auroc", train_images=30, val_images=10,
    epochs=tuple(
        EpochLog(
            stage=stage, epoch=epoch, train_loss=1.0 / epoch, val_loss=1.25 / epoch, val_score=0.4 * epoch,
            lr=0.001, losses={"diagnosis": 0.5 / epoch},
        )
        for stage, epoch in ((0, 1), (1, 2))
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return scored.data(tmp_path_factory.mktemp("data") / "pixels", without_mask=(3, 4))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return handmade.bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="module")
def evaluated(bundle, data):
    return evaluating.evaluate(bundle, *data, EvaluateConfig(resamples=100), "test")


def pixels_of(drawn: report.Figure) -> np.ndarray:
    image = Image.open(io.BytesIO(drawn.png))
    image.load()
    assert image.format == "PNG" and min(image.size) > 150
    values = np.asarray(image.convert("RGB"))
    assert values.std() > 5, "nothing was drawn"
    return values


# -- figures -------------------------------------------------------------------------------------


def test_training_curves():
    drawn = report.training_curves(LOG)
    pixels_of(drawn)
    assert drawn.csv == (
        "stage,epoch,train_loss,val_loss,val_score,lr,val_loss_diagnosis\n"
        "0,1,1,1.25,0.4,0.001,0.5\n"
        "1,2,0.5,0.625,0.8,0.001,0.25\n"
    )


def test_four_panels_stand_in_two_rows():
    """One row of four would be drawn so wide that a page shows each of them small."""
    epochs = tuple(epoch.model_copy(update={"train_accuracy": 0.5 * epoch.epoch}) for epoch in LOG.epochs)
    three, four = (report.training_curves(log) for log in (LOG, LOG.model_copy(update={"epochs": epochs})))
    wide, square = (pixels_of(drawn).shape for drawn in (three, four))
    assert wide[1] > 3 * wide[0] and square[1] < 1.7 * square[0]
    assert four.csv.startswith("stage,epoch,train_loss,val_loss,val_score,lr,train_accuracy")


def four_rows() -> Predictions:
    scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
    return scored.predictions(scores, np.eye(2)[[0, 0, 1, 1]], HEAD)


def test_roc_and_precision_recall():
    roc, curve = report.roc(four_rows(), HEAD), report.precision_recall(four_rows(), HEAD)
    pixels_of(roc), pixels_of(curve)
    assert roc.csv.splitlines()[:6] == [
        "label,false_positive_rate,true_positive_rate,threshold",
        "dark,0,0,inf",
        "dark,0,0.5,0.9",
        "dark,0.5,0.5,0.7",
        "dark,0.5,1,0.6",
        "dark,1,1,0.2",
    ]
    assert curve.csv.splitlines()[:2] == ["label,recall,precision,threshold", "dark,1,0.5,0.2"]


def test_many_curves_can_be_told_apart():
    assert len({(figure.colour(place), figure.dashes(place)) for place in range(24)}) == 24


def test_the_legend_of_curves_hides_none_of_them():
    for lines in (2, 14):
        _, (axes,) = figure.curve_canvas()
        for place in range(lines):
            axes.plot([0, 1], [0, 1], color=figure.colour(place), label=f"{place}: AP 0.500 (positive 50.0%)")
        figure.legend_beside(axes)
        axes.figure.canvas.draw()
        around, plot = axes.get_legend().get_window_extent(), axes.get_window_extent()
        assert around.x0 >= plot.x1 and around.x1 <= axes.figure.bbox.x1, "beside the plot, and within the picture"
        assert 0.7 < plot.width / plot.height < 1.5


def test_an_undefined_curve_is_named_and_not_drawn():
    nothing = scored.predictions(np.full((3, 2), 0.5), np.tile([1, 0], (3, 1)), HEAD)
    assert report.roc(nothing, HEAD).csv == "label,false_positive_rate,true_positive_rate,threshold\n"
    assert [line.split(",")[0] for line in report.precision_recall(nothing, HEAD).csv.splitlines()[1:]] == ["dark"]


def test_reliability_bins_add_up():
    drawn = report.reliability(four_rows(), HEAD)
    pixels_of(drawn)
    lines = [line.split(",") for line in drawn.csv.splitlines()[1:]]
    assert sum(int(line[2]) for line in lines) == 8
    # 0.9 is in the bin [0.866667, 0.933333) alone, and was right
    assert ["0.866667", "0.933333", "1", "0.9", "1"] in lines


def test_confusion_raw_and_normalized():
    counts = ((3, 1), (0, 0))
    raw, shares = report.confusion_counts(counts, HEAD), report.confusion_shares(counts, HEAD)
    pixels_of(raw), pixels_of(shares)
    assert raw.csv == "true,dark,bright\ndark,3,1\nbright,0,0\n"
    assert shares.csv == "true,dark,bright\ndark,0.75,0.25\nbright,,\n"


def test_overlays_outline_true_and_predicted_masks(bundle, data):
    shown = evaluating.samples(bundle, *data, count=4)
    predicted = np.zeros_like(shown.predicted)
    predicted[:, 4:20, 4:20] = True
    masks = np.zeros_like(shown.masks)
    masks[:, 8:28, 8:28] = 1
    drawn = report.overlays(shown.image_id, shown.images, predicted, masks, shown.has_mask)
    values = pixels_of(drawn).reshape(-1, 3).astype(int)
    for colour in (figure.TRUE_COLOUR, figure.PREDICTED_COLOUR):
        wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
        assert (np.abs(values - wanted).max(axis=1) < 40).sum() > 50, colour
    # 12 x 12 pixels in both, 16 x 16 and 20 x 20 in each
    assert drawn.csv.splitlines()[1].split(",")[1:] == [f"{2 * 144 / 656:.6g}", f"{144 / 512:.6g}"]


def test_images_without_a_mask_head_are_shown_without_outlines(data):
    images = np.load(data[1].root / "images.npy")[:2]
    drawn = report.overlays(["a", "b"], images, None, np.zeros((2, 32, 32)), np.zeros(2, dtype=bool))
    pixels_of(drawn)
    assert drawn.csv == "image_id,dice,iou\na,,\nb,,\n"


def test_montages(data):
    rows, pixels = data
    drawn = report.montage(rows, pixels, count=5, seed=2)
    pixels_of(drawn)
    assert len(drawn.csv.splitlines()) == 6 and {line.split(",")[1] for line in drawn.csv.splitlines()[1:]} <= {
        "dark",
        "bright",
    }
    assert report.montage(rows, pixels, count=5, seed=2).png == drawn.png
    pixels_of(report.stored_montage(pixels, count=3))


def test_class_balance_by_split(data):
    rows, _ = data
    drawn = report.class_balance({"train": rows.take(range(10)), "test": rows.take(range(10, 14))})
    pixels_of(drawn)
    assert drawn.csv == "head,label,train,test\ndiagnosis,dark,5,1\ndiagnosis,bright,5,3\n"


def test_comparison():
    item = Comparison(
        head="diagnosis", label="macro", metric="auroc", candidate=0.9, incumbent=0.88, difference=0.02, low=-0.01,
        high=0.05, margin=0.02, n=100, groups=50,
    )  # fmt: skip
    drawn = report.comparison([item])
    pixels_of(drawn)
    assert drawn.csv.splitlines()[1] == "diagnosis,macro,auroc,0.9,0.88,0.02,-0.01,0.05,0.02,100,50"


def test_the_same_figure_has_the_same_bytes_and_pyplot_stays_out():
    import subprocess
    import sys

    assert report.training_curves(LOG).png == report.training_curves(LOG).png
    code = (
        "import sys\n"
        "from medflow.report import figure, pages\n"
        "print({'matplotlib', 'sklearn', 'scipy', 'torch'} & set(sys.modules))\n"
        "figure.canvas()\n"
        "print({'matplotlib.pyplot', 'torch'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["set()", "set()"], "pages of tables import nothing that draws"


# -- pages ---------------------------------------------------------------------------------------


class Links(HTMLParser):
    """Every address that a document would load or lead to, every tag, and whether all tags are closed."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def stands_alone(document: str) -> str:
    assert document.startswith("<!doctype html>")
    links = Links()
    links.feed(document)
    assert links.open == []
    assert all(address.startswith(("data:image/png;base64,", "data:text/csv;base64,")) for address in links.addresses)
    assert not links.tags & {"script", "link", "iframe", "object", "embed"}
    assert "url(" not in document and "@import" not in document
    for picture in re.findall(r'src="data:image/png;base64,([^"]+)"', document):
        Image.open(io.BytesIO(base64.b64decode(picture))).load()
    return document


@pytest.fixture(scope="module")
def choice() -> Choice:
    verdict = Verdict(
        variant="int8", chosen=True, reason="5 < 10 ms & smaller", metric="auroc", value=0.9, loss=0.0, bytes=9
    )
    return Choice(chosen="int8", verdicts=(verdict,))


@pytest.fixture(scope="module")
def promotion(evaluated):
    facts = PackageFacts(tag="t:1", file="t.bento", content_digest="new", bundle_digest="b", bytes=1, bento_sha256="")
    held = Challenge(stage="production", model_version="1", package_digest="old")
    made, said = evaluated.evaluation, evaluated.predictions
    return promote(made, said, made, said, facts, held, PromoteConfig(resamples=100), scored.unseen(said))


def test_evaluation_page(evaluated, bundle, data):
    shown = evaluating.samples(bundle, *data, count=2)
    drawn = report.overlays(shown.image_id, shown.images, shown.predicted, shown.masks, shown.has_mask)
    document = stands_alone(report.evaluation_page(evaluated.evaluation, evaluated.predictions, [drawn]))
    accuracy = evaluated.evaluation.score("accuracy")
    assert f"{accuracy.low:.4f} to {accuracy.high:.4f}" in document
    for title in ("Confusion of diagnosis", "ROC of diagnosis", "Reliability of diagnosis", "Images with predicted"):
        assert title in document
    stands_alone(report.evaluation_page(evaluated.evaluation))


def test_an_undefined_score_is_a_dash_and_is_told(bundle, data):
    rows, pixels = data
    bright = rows.take(np.flatnonzero(rows.targets(HEAD)[:, 1] == 1))
    made = evaluating.evaluate(bundle, bright, pixels, EvaluateConfig(resamples=100), "test").evaluation
    document = stands_alone(report.evaluation_page(made))
    assert "left out of the macro mean: diagnosis: bright, diagnosis: dark" in document
    assert "nan" not in re.sub(r'"data:[^"]+"', "", document).lower()


def test_bundle_page(bundle):
    parity = Parity(against="torch", max_abs_difference=1.5e-7, decisions_agree=0.995, images=200)
    card = bundle.card.model_copy(update={"training": LOG, "parity": parity, "notes": ("two layers stay float",)})
    document = stands_alone(report.bundle_page(card))
    for words in ("1.50e-07", "99.50% of 200", "two layers stay float", "Training", "dice"):
        assert words in document
    assert list(report.bundle_pages(bundle)) == ["bundle.html"]


def test_manifest_and_pixel_pages(data):
    rows, pixels = data
    document = stands_alone(report.manifest_page(rows, [report.montage(rows, pixels, count=2)]))
    assert "Gray squares" in document and "F 26, M 14" in document
    assert stands_alone(report.manifest_pages(rows)["manifest.html"])
    assert "32 x 32 x 1" in stands_alone(report.pixels_pages(pixels)["pixels.html"])
    stands_alone(report.manifest_page(rows.take([])))


def test_predictions_pages(evaluated):
    document = stands_alone(report.predictions_pages(evaluated.predictions)["predictions.html"])
    assert "the lowest of 38 images" in document
    empty = Predictions("none", "rows", (), np.array([]), np.array([]), {}, {})
    assert report.predictions_pages(empty) == {}


def test_record_pages(evaluated, choice, promotion):
    findings = Findings(
        images=10, quarantined=1,
        findings=(Finding(check="blank", severity="warning", message="nothing to see", count=1, examples=("a.png",)),),
    )  # fmt: skip
    normalization = Normalization(images=3, sizes=(ChannelStats(height=32, width=32, mean=(0.5,), std=(0.2,)),))
    wanted = {
        "evaluation.html": (evaluated.evaluation, "Headline"),
        "findings.html": (findings, "a.png"),
        "choice.html": (choice, "5 &lt; 10 ms &amp; smaller"),
        "promotion.html": (promotion, "Promoted to production"),
        "normalization.html": (normalization, "0.5000"),
    }
    for name, (record, words) in wanted.items():
        pages = report.record_pages(record)
        assert list(pages) == [name] and words in stands_alone(pages[name])
    assert report.record_pages(Challenge(stage="production")) == {}


def test_run_page_with_everything_and_with_nothing(evaluated, bundle, data, choice, promotion):
    rows, _ = data
    pixels = Ancestor(artifact="pixels", content="a" * 64, step="ingest", made_in="run0", cached=True, came_from=())
    model = Ancestor(
        artifact="bundle", content="b" * 64, step="train", made_in="run1", cached=False, came_from=("a" * 64, "c" * 64)
    )
    run = report.RunReport(
        title="tiny, run 1", lead="generated", parts={"train": rows.take(range(20)), "test": rows.take(range(20, 40))},
        findings=Findings(images=40), cards=[bundle.card.model_copy(update={"training": LOG})],
        validation=[evaluated.evaluation], selection=choice, choice=choice, evaluation=evaluated.evaluation,
        predictions=evaluated.predictions, promotion=promotion, lineage=[pixels, model],
    )  # fmt: skip
    document = stands_alone(report.run_page(run))
    titles = re.findall("<h2>(.*?)</h2>", document)
    assert titles[:2] == ["Promotion", "On test rows"] and len(titles) == len(set(titles)) == 14
    assert "pixels aaaaaaaaaaaa, other cccccccccccc" in document
    assert f"Weights from: {bundle.card.weights_from}." in document
    assert "<h2>" not in stands_alone(report.run_page(report.RunReport(title="nothing yet")))


def test_right_and_wrong_of_independent_labels_are_counted_in_both_pages(evaluated):
    counts = LabelCounts(label="x", true_positives=129, false_positives=400, false_negatives=31, true_negatives=7)
    counted = evaluated.evaluation.model_copy(update={"counts": {"findings": (counts,)}})
    run = report.RunReport(title="tiny", evaluation=counted)
    for document in (report.evaluation_page(counted), report.run_page(run)):
        cells = "".join(f'<td class="number">{count}</td>' for count in (129, 400, 31, 7))
        assert f"<td>x</td>{cells}" in stands_alone(document)
    assert "Right and wrong by label" not in report.evaluation_page(evaluated.evaluation)
    before = evaluated.evaluation.model_dump(mode="json", exclude={"counts"})
    assert type(counted).model_validate(before).counts == {}


def test_what_the_split_found_is_in_the_report_of_a_run(data):
    rows, _ = data
    told = Finding(check="group_unknown", severity="warning", message="images whose lesion is unknown", count=9)
    parts = {"train": replace(rows, findings=(told,))}
    document = stands_alone(report.run_page(report.RunReport(title="tiny", parts=parts)))
    assert "What the split found" in document and "images whose lesion is unknown" in document


def test_whatever_is_named_by_others_is_escaped():
    evil = '<img src=x onerror="alert(1)">&'
    section = html.section(evil, html.text(evil), html.table((evil,), [(evil,)]), html.bullets([evil]))
    document = stands_alone(html.page(evil, evil, section))
    assert document.count("&lt;img") == 8 and document.count("&quot;") == 16
    assert "<img" not in document
    assert html.section("empty") == ""


def test_csv_quotes_what_needs_it():
    text = figure.csv_text(["a", "b"], [('x,"y"', 1 / 3), (None, float("nan"))])
    assert text == 'a,b\n"x,""y""",0.333333\n,\n'

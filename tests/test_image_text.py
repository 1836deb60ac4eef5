"""Models that read reports: what they learn from them, and that every variant reads them alike."""

from __future__ import annotations

import asyncio
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import handmade
import httpx
import numpy as np
import pyarrow
import pytest
import tiny
import torch
from PIL import Image
from pydantic import TypeAdapter
from safetensors.numpy import load_file
from sklearn.metrics import roc_auc_score
from starlette.responses import Response

from medflow import datasets, hub, models
from medflow.config.sections import (
    Declaration,
    ExportConfig,
    ImageTextModel,
    PruneConfig,
    QuantizeConfig,
    RunConfig,
    Stage,
    TextEncoder,
    TrainConfig,
)
from medflow.decisions import probabilities
from medflow.door import ASKED, PREDICT, Door
from medflow.errors import ArtifactError, DataError, ModelError, WeightsUnavailable
from medflow.export import export_onnx
from medflow.graph import Graph, check_golden
from medflow.package import package
from medflow.predict import predict
from medflow.prune import prune
from medflow.quantize import quantize
from medflow.records import Bundle, Manifest
from medflow.report_table import read_reports, reports_of
from medflow.scoring import open_scorer
from medflow.serve import Identity, Model
from medflow.server import start_server
from medflow.substitute import with_reachable_encoders
from medflow.text import MAX_CHARACTERS, learn_tokenizer
from medflow.text_encoder import prepare
from medflow.tracking import LocalFiles, Silent
from medflow.train import train

SMALL = TextEncoder(encoder="small", width=16, layers=1, heads=2, max_tokens=16, vocabulary=80)
FUSIONS = ("concat", "cross_attention", "gated")
WORDS = ("the field is dark throughout", "a bright disc without stripes", "bright stripes across the disc")
QUICK = TrainConfig(batch_size=8, stages=(Stage(epochs=2, lr=2e-3),), checkpoint_seconds=0.0)
#: A word that no training report has.
HELD_OUT = "zyzzyva"


def model(fusion: str = "concat", **settings: object) -> ImageTextModel:
    given = {"pretrained": "none", "stats": "unit", "size": tiny.SIZE, "fusion_width": 16, "text": SMALL, **settings}
    return ImageTextModel(name="test_resnet", fusion=fusion, **given)  # type: ignore[arg-type]


def told(part: Manifest, *, missing: int = 4, more: str = "") -> Manifest:
    """The rows with a report that names the class; every ``missing``-th has none."""
    classes = np.nan_to_num(part.targets(tiny.LABELS)).argmax(axis=1)
    reports = [None if row % missing == 0 else f"{WORDS[label]} {more}" for row, label in enumerate(classes)]
    place = part.table.schema.get_field_index("text")
    return replace(part, table=part.table.set_column(place, "text", pyarrow.array(reports, type=pyarrow.string())))


def data(folder: Path, rows: int = 36):
    """As ``tiny.make``, with reports; the validation rows' hold a word of their own."""
    train_rows, val, pixels, normalization = tiny.make(folder, rows=rows)
    return told(train_rows), told(val, more=HELD_OUT), pixels, normalization


def run(folder: Path, section: ImageTextModel, config: TrainConfig = QUICK, rows: int = 36) -> Bundle:
    parts = data(folder / "pixels", rows)
    files = LocalFiles(folder / "checkpoints")
    return train(*parts, (tiny.LABELS,), section, config, work=folder, tracker=Silent(), checkpoints=files)


def build(section: ImageTextModel, heads=(tiny.LABELS,), rows: Manifest | None = None) -> models.Network:
    manifest = rows or told(tiny._manifest(np.arange(12) % 3, 12))
    reading = prepare(section, manifest).reading
    return models.build(section, heads, tiny.preprocess(), text=reading, seed=1).eval()


def pictures(rows: int = 4) -> torch.Tensor:
    return torch.from_numpy(tiny.draw(rows, seed=3)[0])


@pytest.fixture(scope="module", params=FUSIONS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp(request.param)
    return run(root, model(request.param)), data(root / "again")


# -- the network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("heads", [(tiny.FINDINGS,), (tiny.LABELS, tiny.FINDINGS)])
def test_shapes_and_gradients(fusion, heads):
    network = build(model(fusion), heads)
    tokens = learn_tokenizer(WORDS, vocabulary=80, max_tokens=16)([WORDS[0], None, WORDS[2], None])
    logits = network(pictures(), *map(torch.from_numpy, tokens.named().values()))
    assert {name: tuple(value.shape) for name, value in logits.items()} == {
        head.name: (4, len(head.labels)) for head in heads
    }
    sum(value.sum() for value in logits.values()).backward()
    # A part without a gradient would stop a training on several GPUs.
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext"])
def test_attention_looks_from_the_positions_of_other_backbones(backbone):
    section = model("cross_attention").model_copy(update={"name": backbone, "size": 160})
    reading = prepare(section, told(tiny._manifest(np.arange(12) % 3, 12))).reading
    network = models.build(section, (tiny.LABELS,), tiny.preprocess(160), text=reading).eval()
    assert network(torch.zeros((2, 160, 160, 1), dtype=torch.uint8))["diagnosis"].shape == (2, 3)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_missing_report_is_the_learned_vector_and_nothing_else(fusion):
    network = build(model(fusion))
    images, nothing = pictures(), torch.zeros((4, 16), dtype=torch.long)
    with torch.no_grad():
        absent = network(images)["diagnosis"]
        assert torch.isfinite(absent).all()
        # What fills up the row is not read.
        assert torch.allclose(absent, network(images, nothing + 7, nothing)["diagnosis"], atol=1e-6)
        present = network(images, nothing + 7, nothing + 1)["diagnosis"]
        assert not torch.allclose(absent, present, atol=1e-3)
        network.neck.missing += 1.0
        assert not torch.allclose(absent, network(images)["diagnosis"], atol=1e-3)
        assert torch.equal(present, network(images, nothing + 7, nothing + 1)["diagnosis"])


def test_reports_left_out_in_training_are_missing_ones():
    network = build(model(text_dropout=1.0, dropout=0.0))
    network.neck.train()
    network.neck.encoder.eval()
    ids = torch.full((4, 16), 7)
    with torch.no_grad():
        assert torch.allclose(network(pictures())["diagnosis"], network(pictures(), ids, ids)["diagnosis"], atol=1e-6)


def test_a_mask_is_refused_and_so_is_a_dataset_without_reports():
    rows = tiny._manifest(np.arange(12) % 3, 12)
    with pytest.raises(ModelError, match="no mask head"):
        build(model(), (tiny.REGION,))
    with pytest.raises(DataError, match="no training row of tiny has a report"):
        prepare(model(), rows)


# -- training ------------------------------------------------------------------------------------


def of_any_image(part: Manifest) -> Manifest:
    """The rows with each other's images, so that only the report tells the class."""
    place = part.table.schema.get_field_index("pixel_row")
    mixed = np.random.default_rng(0).permutation(part.pixel_rows())
    return replace(part, table=part.table.set_column(place, "pixel_row", pyarrow.array(mixed)))


def test_what_reports_say_is_learnt(tmp_path):
    rows, val, pixels, normalization = tiny.make(tmp_path / "pixels", rows=72)
    rows, val = (told(of_any_image(part), missing=100) for part in (rows, val))
    bundle = train(
        rows, val, pixels, normalization, (tiny.LABELS,), model("gated", text_dropout=0.1),
        TrainConfig(batch_size=8, stages=(Stage(epochs=12, lr=5e-3, patience=0),)),
        work=tmp_path, tracker=Silent(), checkpoints=LocalFiles(tmp_path / "checkpoints"),
    )  # fmt: skip
    assert bundle.card.training is not None
    losses = [epoch.train_loss for epoch in bundle.card.training.epochs]
    assert losses[-1] < 0.5 * losses[0]
    assert bundle.card.training.best_score > 0.95
    assert auroc(bundle, [WORDS[row % 3] for row in range(24)]) > 0.95
    assert auroc(bundle, [None] * 24) < 0.8
    note = next(note for note in bundle.card.notes if "without any" in note)
    read, unread = (float(word) for word in re.findall(r"\d\.\d+", note))
    assert read > 0.95 > 0.8 > unread
    assert Bundle.open(bundle.root).card == bundle.card


def auroc(bundle: Bundle, reports: list[str | None]) -> float:
    """Of new images in the order of the classes, with these reports."""
    scores = open_scorer(bundle)(tiny.draw(len(reports), seed=8)[0], reports)["diagnosis"]
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return float(roc_auc_score(np.arange(len(reports)) % 3, shares, multi_class="ovr"))


def test_the_vocabulary_is_of_the_training_rows_alone(trained):
    bundle, (rows, val, _, _) = trained
    assert any(HELD_OUT in (report or "") for report in val.reports())
    alone = learn_tokenizer(rows.reports(), vocabulary=SMALL.vocabulary, max_tokens=SMALL.max_tokens)
    assert bundle.card.text.tokenizer_sha256 == alone.sha256()
    assert not any(letter in "".join(json.loads(alone.document)["model"]["vocab"]) for letter in "zy")


def test_the_same_seed_gives_the_same_bits_and_the_card_says_what_reads(trained, tmp_path):
    bundle, _ = trained
    again = run(tmp_path, models.read_config(bundle.card.model))
    assert again.weights.read_bytes() == bundle.weights.read_bytes()
    assert again.card.text == bundle.card.text
    assert bundle.card.weights_from == "none; text: small encoder, random"
    assert bundle.card.text.reports == 18
    assert any("learned from 18 training reports" in note for note in bundle.card.notes)
    assert any("may name the very finding" in note for note in bundle.card.notes)
    assert [path.name for path in bundle.files()][-1] == "tokenizer.json"


class _Cut(LocalFiles):
    """Checkpoints of a training that is cut off after a few."""

    left = 3

    def write(self, name: str, data: bytes) -> None:
        super().write(name, data)
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_cut_off_and_run_again_it_ends_with_the_same_bits(trained, tmp_path):
    bundle, _ = trained
    section = models.read_config(bundle.card.model)
    parts, files = data(tmp_path / "pixels"), tmp_path / "checkpoints"
    with pytest.raises(KeyboardInterrupt):
        train(*parts, (tiny.LABELS,), section, QUICK, work=tmp_path, tracker=Silent(), checkpoints=_Cut(files))
    again = train(
        *parts, (tiny.LABELS,), section, QUICK, work=tmp_path, tracker=Silent(), checkpoints=LocalFiles(files)
    )
    assert again.weights.read_bytes() == bundle.weights.read_bytes()


# -- every variant -------------------------------------------------------------------------------


def test_every_variant_reads_alike(trained, tmp_path):
    bundle, (rows, val, pixels, _) = trained
    onnx = export_onnx(bundle, val, pixels, ExportConfig(), work=tmp_path)
    int8 = quantize(onnx, rows, val, pixels, QuantizeConfig(calibration_images=16), work=tmp_path / "int8")
    pruned = prune(
        bundle, rows, val, pixels, PruneConfig(stage=Stage(epochs=1)), QUICK,
        work=tmp_path / "pruned", tracker=Silent(), checkpoints=LocalFiles(tmp_path / "checkpoints"),
    )  # fmt: skip
    assert pruned.card.parameters < bundle.card.parameters
    assert onnx.card.parity.max_abs_difference < 1e-5
    images, reports = tiny.draw(5, seed=9)[0], [WORDS[2], None, "", HELD_OUT, WORDS[0] * 20]
    expected, found = open_scorer(bundle)(images, reports)["diagnosis"], Graph(onnx)(images, reports)["diagnosis"]
    assert np.abs(expected - found).max() < 1e-4
    assert not np.allclose(found, Graph(onnx)(images)["diagnosis"], atol=1e-4)
    for variant in (onnx, int8):
        check_golden(variant, Graph(variant))
        golden = load_file(variant.golden)
        assert None in json.loads(golden["reports"].tobytes())
    # Alone or in a batch, a row is the same.
    one = Graph(onnx)(images[:1], reports[:1])["diagnosis"]
    assert np.allclose(one, found[:1], atol=1e-5)


def test_another_tokenizer_is_refused(trained, tmp_path):
    bundle, _ = trained
    copy = bundle.copy_to(tmp_path / "copy")
    open_scorer(copy)
    copy.tokenizer.write_text(copy.tokenizer.read_text().replace("bright", "brught"))
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        open_scorer(copy)


def test_predict_reads_a_table(trained, tmp_path):
    bundle, _ = trained
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path, image in zip(paths, tiny.draw(2, seed=4)[0], strict=True):
        Image.fromarray(image[..., 0]).save(path)
    table = tmp_path / "reports.csv"
    table.write_text(f"image,text\n1.png,{WORDS[2]}\n")
    plain, told_ = predict(bundle, paths, tmp_path / "a"), predict(bundle, paths, tmp_path / "b", reports=table)
    assert plain.rows[0].probabilities == told_.rows[0].probabilities
    assert plain.rows[1].probabilities != told_.rows[1].probabilities


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image,report\na.png,x\n", "lacks the column text"),
        ("image,text\na.png,x\na.png,y\n", "twice"),
        ("image,text\na.png," + "x" * 20_001 + "\n", "20,001 characters"),
        ("image,text\nb.png,x\n", "none of the images"),
    ],
)
def test_a_wrong_table_is_refused(table, message, tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text(table)
    with pytest.raises(DataError, match=message):
        reports_of([Path("scans/a.png")], read_reports(path))


# -- serving -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The service's model over a graph that reads reports, without BentoML around it."""
    root = tmp_path_factory.mktemp("service")
    _, val, pixels, _ = data(root / "again")
    bundle = export_onnx(run(root, model("gated")), val, pixels, ExportConfig(), work=root)
    bundle.copy_to(root / "bundle")
    identity = Identity(name="tiny", version="1", content_digest="0" * 64, bundle_digest=bundle.digest())
    (root / "identity.json").write_text(identity.model_dump_json())
    made = Model(root)
    made.open()
    assert made.refusal is None
    return made


def ask(service: Model, **fields: str | bytes) -> tuple[int, dict]:
    """One multipart request through the door; bytes are sent as a file."""
    request = httpx.Request(
        "POST", "http://door/predict",
        files={name: (name, value) if isinstance(value, bytes) else (None, value) for name, value in fields.items()},
    )  # fmt: skip
    body, sent = request.read(), []

    async def receive() -> dict:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict) -> None:
        sent.append(message)

    async def app(scope, receive, send) -> None:
        [answer] = service.answers(scope[ASKED])
        await Response(answer.model_dump_json(), media_type="application/json")(scope, receive, send)

    headers = [(name.lower(), value) for name, value in request.headers.raw]
    asyncio.run(
        Door(app, service)({"type": "http", "method": "POST", "path": PREDICT, "headers": headers}, receive, send)
    )
    return sent[0]["status"], json.loads(b"".join(part["body"] for part in sent[1:]))


@pytest.fixture(scope="module")
def picture() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(tiny.draw(1, seed=4)[0][0, ..., 0]).save(stream, "PNG")
    return stream.getvalue()


def test_a_served_report_is_read_as_in_training(service, picture):
    status, with_report = ask(service, image=picture, text=WORDS[2])
    assert (status, with_report["report_read"]) == (200, True)
    status, without = ask(service, image=picture)
    assert (status, without["report_read"]) == (200, False)
    assert with_report["probabilities"] != without["probabilities"]
    assert ask(service, image=picture, text=" \r\n ")[1] == without
    assert ask(service, image=picture, text="\u00e4 \u7d50\u679c \x00 [SEP]")[0] == 200
    pixels = tiny.draw(1, seed=4)[0]
    card = service.card
    scorer = open_scorer(service.bundle)
    expected = probabilities(scorer(pixels, [WORDS[2]]), card.heads, card.temperatures)["diagnosis"][0]
    assert np.allclose(list(with_report["probabilities"].values()), expected, atol=1e-6)


def test_the_packaged_service_reads_the_field_text(service, picture, tmp_path):
    """A real Bento over HTTP, of a model whose dataset no module but a YAML declares."""
    declared = TypeAdapter(Declaration).validate_python(
        {"kind": "table", "csv": "t.csv", "columns": {"path": "file", "text": "report"},
         "heads": [{**tiny.LABELS.model_dump(), "column": "dx"}]}
    )  # fmt: skip
    dataset = datasets.get("mine", declared).card
    copy = service.bundle.copy_to(tmp_path / "bundle")
    bundle = replace(copy, card=copy.card.model_copy(update={"dataset": dataset})).write_card()
    made = package(bundle, handmade.evaluation(bundle), work=tmp_path / "work")
    assert made.facts.tag.startswith("mine:")
    with start_server(made, home=tmp_path / "home", log=tmp_path / "log") as running, httpx.Client(timeout=60) as http:
        url, files = f"{running.url}{PREDICT}", {"image": ("scan.png", picture)}
        read, unread = (http.post(url, files=files, data=fields).json() for fields in ({"text": WORDS[2]}, {}))
        told = http.get(f"{running.url}/model/info").json()
    assert (read["report_read"], unread["report_read"]) == (True, False)
    assert told["card"]["dataset"]["name"] == "mine" and told["card"]["text"] is not None
    for answer, fields in ((read, {"text": WORDS[2]}), (unread, {})):
        assert answer["probabilities"] == pytest.approx(ask(service, image=picture, **fields)[1]["probabilities"])
    assert read["probabilities"] != unread["probabilities"]


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("x" * MAX_CHARACTERS, 200, ""),
        ("x" * (MAX_CHARACTERS + 1), 413, "20,001 characters"),
        ("x" * 200_000, 413, "200,000 characters"),
        (b"a file", 400, "more than one file"),
    ],
)
def test_reports_are_bounded(service, picture, text, status, message):
    found, body = ask(service, image=picture, text=text)
    assert found == status
    assert message in body.get("error", "")


def test_a_model_without_reports_refuses_one(service, picture):
    class Blind(Model):
        reads_reports = False

    blind = Blind(service.bundle.root.parent)
    blind.open()
    status, body = ask(blind, image=picture, text="a report")
    assert status == 422
    assert "reads none" in body["error"]


# -- a pretrained encoder ------------------------------------------------------------------------


def encoder_folder(folder: Path, **settings: int) -> Path:
    """A tiny BERT as transformers saves it, with BERT's cased vocabulary file."""
    from transformers import BertConfig, BertModel

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Dark", "dark", "bright", "disc", "stripes"]
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, **settings,
    )  # fmt: skip
    torch.manual_seed(3)
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words))
    return folder


def test_the_weights_of_a_folder_are_read_and_paced_with_the_backbone(tmp_path):
    folder = encoder_folder(tmp_path / "bert")
    section = model(text=TextEncoder(encoder=str(folder), max_tokens=16))
    bundle = run(tmp_path / "run", section, TrainConfig(batch_size=8, stages=(Stage(epochs=1, freeze="backbone"),)))
    given, kept = load_file(folder / "model.safetensors"), load_file(bundle.weights)
    name = "embeddings.word_embeddings.weight"
    assert np.array_equal(kept[f"neck.encoder.{name}"], given[name]), "frozen, so still the folder's"
    assert bundle.card.text.pretrained
    assert bundle.card.text.origin.startswith("bert, sha256:")
    assert str(tmp_path) not in bundle.card.model_dump_json(exclude={"model"})
    tokenizer = json.loads(bundle.tokenizer.read_text())
    assert tokenizer["normalizer"]["lowercase"] is False


def test_pickled_weights_are_not_read(tmp_path):
    folder = encoder_folder(tmp_path / "bert")
    tensors = {name: torch.from_numpy(value) for name, value in load_file(folder / "model.safetensors").items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsUnavailable, match="cannot be had"):
        rows = told(tiny._manifest(np.arange(6) % 3, 6))
        prepare(model(text=TextEncoder(encoder=str(folder), max_tokens=16)), rows, folder)


def test_out_of_reach_a_small_encoder_stands_in_and_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert not hub.answers()
    config = RunConfig(dataset="phantom", models=(model(text=TextEncoder()),))
    settled = with_reachable_encoders(config).models[0]
    assert isinstance(settled, ImageTextModel)
    assert (settled.text.encoder, settled.text.instead_of) == ("small", "dmis-lab/biobert-base-cased-v1.2")
    assert "takes its place" in "".join(capsys.readouterr())
    told_rows = told(tiny._manifest(np.arange(12) % 3, 12))
    prepared = prepare(settled, told_rows)
    assert "in place of dmis-lab/biobert-base-cased-v1.2" in prepared.weights_from()
    assert "in place of dmis-lab/biobert-base-cased-v1.2" in prepared.notes()[0]
    strict = model(text=TextEncoder(offline="error"))
    with pytest.raises(WeightsUnavailable, match="the hub does not answer"):
        with_reachable_encoders(config.model_copy(update={"models": (strict,)}))
    with pytest.raises(WeightsUnavailable):
        prepare(model(text=TextEncoder()), told_rows)

"""The verb that judges a finished model on images from elsewhere."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medflow.commands import output
from medflow.commands.models import bundle_of
from medflow.commands.place import LOCAL, go
from medflow.commands.running import tell_scores
from medflow.commands.settings import read_settings, settings_of
from medflow.commands.verb import At, JsonOption, Metadata

if TYPE_CHECKING:
    from medflow.external import Judged
    from medflow.records import Bundle, ExternalEvaluation, Past

PAGE, RESULT = "evaluation.html", "evaluation.json"


class Part(StrEnum):
    """A part of the source's own lists."""

    train = "train"
    val = "val"
    test = "test"


class Groups(StrEnum):
    """What equal names of groups mean."""

    same = "same"
    other = "other"


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model as `serve` takes it, or a bundle's folder.")],
    source: Annotated[str, typer.Option(metavar="DIR|ZIP|kaggle|s3://…", help="Where the labelled images are.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings of validate, evaluate and split over those of the YAML, such as evaluate.resamples=200.",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="DATASET", help="Whose layout the images have. [default: the model's own]",
                     show_default=False),
    ] = None,
    split: Annotated[
        Part | None, typer.Option(help="Only images that the source's own lists call so.", show_default=False)
    ] = None,
    groups: Annotated[
        Groups, typer.Option(help="Whether a patient named as one of the training is that patient.")
    ] = Groups.same,
    metadata: Metadata = None,
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the page and the JSON.")] = Path("evaluation"),
    on: At = LOCAL,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Judge a model on labelled images from elsewhere.

    Every metric with its interval, as in a run; thresholds stay the model's own. What the model was trained on is
    found by file, picture and patient, and left out. Nothing is trained, and nothing is recorded but the two files.

    \b
    Examples:
      medflow evaluate covid_radiography@production --source ~/other_hospital
      medflow evaluate chest_xray_pneumonia@3 --source ~/archive.zip --split test --to judged
      medflow evaluate phantom --source twin --json | jq .evaluation.scores
      medflow evaluate path/to/bundle --source ~/scans --dataset mine --groups other
    """
    go(on)
    settings_of((), source, metadata)  # paths that are not there are told before anything is loaded
    with _scratch() as work:
        bundle = bundle_of(model, work / "bundle")
        reading = read_settings(dataset or bundle.card.dataset.name, settings or (), source, metadata)
        known = _known(model, bundle, groups)
        from medflow import datasets, external

        config = reading.config
        spec = datasets.get(config.dataset, config.declare)
        judged = external.judge(bundle, spec, config, known, work, part=split.value if split else None)
        paths = _write(judged, to)
    if as_json:
        output.emit_json({**judged.external.model_dump(mode="json"), "files": [str(path.absolute()) for path in paths]})
        return
    _tell(judged.external)
    output.emit(f"wrote {' and '.join(str(path) for path in paths)}")


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder beside those of the runs, since pixels of a large source would not fit everywhere."""
    from medflow.home import home

    (home() / "work").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="evaluate-", dir=home() / "work") as scratch:
        yield Path(scratch)


def _known(reference: str, bundle: Bundle, groups: Groups) -> Past:
    from medflow.platform import fitted_on

    found = fitted_on.of_card(bundle.card) if Path(reference).is_dir() else fitted_on.of_model(reference)
    return found if groups is Groups.same else found.without_names()


def _write(judged: Judged, to: Path) -> tuple[Path, Path]:
    from medflow.atomic import write_bytes
    from medflow.report.external import external_page

    to.mkdir(parents=True, exist_ok=True)
    page = external_page(judged.external, judged.predictions, judged.samples)
    write_bytes(to / PAGE, page.encode())
    write_bytes(to / RESULT, output.json_text(judged.external.model_dump(mode="python")).encode())
    return to / PAGE, to / RESULT


def _tell(external: ExternalEvaluation) -> None:
    output.emit(f"{external.judged} of {external.images} images of {external.dataset} judged, {external.groups} groups")
    for item in external.left_out:
        output.emit(f"left out: {item.images} ({item.reason})")
    if external.compared is not None:
        output.emit(f"compared with {external.compared} images that {external.model} was fitted on")
    for note in external.notes:
        output.emit(f"note: {note}")
    output.emit()
    tell_scores(external.evaluation.scores)

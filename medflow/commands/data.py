"""Verbs about datasets: which there are, and offline twins of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medflow.commands import output
from medflow.commands.verb import JsonOption

if TYPE_CHECKING:
    from medflow.config.sections import Declaration


def datasets(as_json: JsonOption = False) -> None:
    """List the datasets: heads, source, what groups their images.

    Those that YAMLs of this folder declare come last.

    \b
    Examples:
      medflow datasets
      medflow datasets --json | jq -r '.[].name'
    """
    from medflow import datasets as registry
    from medflow.config.own import declared_in

    cards = [registry.get(name).card for name in registry.names()]
    cards += [registry.get(own.dataset, own.declare).card for own in declared_in(Path.cwd())]
    if as_json:
        output.emit_json([card.model_dump(mode="json") for card in cards])
        return
    rows = [
        (card.name, ", ".join(f"{head.name} ({head.kind}, {len(head.labels)})" for head in card.heads), card.grouped_by,
         card.kaggle or _home(card.name))
        for card in cards
    ]  # fmt: skip
    output.emit_table(("dataset", "heads", "grouped by", "kaggle"), rows)


def _home(name: str) -> str:
    from medflow import datasets as registry

    return "generated" if name in registry.names() else "yours"


def _named(dataset: str) -> tuple[str, Declaration | None]:
    """A dataset with a module, or what a YAML is about."""
    from medflow import datasets as registry
    from medflow.config.reading import load

    if dataset in registry.names():
        return dataset, None
    config = load(dataset)
    return config.dataset, config.declare


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the dataset; NAME.yaml is written here.")],
    images: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the images.")],
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Table of paths and labels.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace NAME.yaml.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make settings for images of your own: look at a folder, say what it holds, write NAME.yaml.

    Class folders, train/val/test above them, masks below or beside them, masks alone, or a CSV of paths with one
    label, labels parted by |, or a column of 0 and 1 for each. Nothing is moved or changed.

    \b
    Examples:
      medflow new mine --images ~/scans
      medflow new mine --images ~/scans --csv ~/scans/labels.csv
      medflow new mine --images ~/scans --force --json | jq .labels
    """
    from medflow.survey import survey, writing

    writing.refuse_name(name, Path.cwd(), force=force)
    found = survey(name, images.expanduser(), csv.expanduser() if csv is not None else None)
    path = writing.write(name, found, images.expanduser(), Path.cwd())
    if as_json:
        output.emit_json(writing.as_json(found, path))
        return
    output.emit_table(("what", "found"), writing.as_rows(found))
    for note in found.notes:
        output.emit(f"note: {note}")
    output.emit(f"wrote {path.name}; read it, then: medflow run {name}")


def phantom(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="A name of `medflow datasets`, or a YAML of yours.")
    ],
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; it must be new or empty.")],
    images: Annotated[int, typer.Option(min=1, help="How many images, about.")] = 120,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
    planted_faults: Annotated[
        bool, typer.Option("--planted-faults", help="Broken files, duplicates, leaks and wrong masks among them.")
    ] = False,
    metadata: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the table that the archive lacks as well, to this new file."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write an offline twin of a dataset.

    Generated images in exactly its archive's layout and metadata files.

    \b
    Examples:
      medflow phantom covid_radiography --to twin --images 200
      medflow phantom chest_xray_pneumonia --to faulty --images 300 --planted-faults
      medflow phantom ham10000 --to skin --metadata lesions.csv
      medflow run covid_radiography --source twin train.epochs=2 model.pretrained=none
    """
    from medflow.records import Generated
    from medflow.twins import write_twin

    wanted = Generated(images=images, seed=seed, planted_faults=planted_faults)
    name, declared = _named(dataset)
    planted = write_twin(name, to, wanted, declared, metadata=metadata)
    files = sum(path.is_file() for path in to.rglob("*"))
    if as_json:
        faults = {kind: list(paths) for kind, paths in planted.faults.items()}
        output.emit_json({"dataset": dataset, "folder": str(to.absolute()), "files": files, "faults": faults})
        return
    output.emit(f"wrote {files} files to {to}")
    if planted.faults:
        output.emit_table(("fault", "files"), [(kind, len(paths)) for kind, paths in planted.faults.items()])
    joined = f" --metadata {metadata}" if metadata else ""
    output.emit(f"next: medflow run {dataset} --source {to}{joined}")

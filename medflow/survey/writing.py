"""A survey as the commented YAML that `medflow run` takes, and as a table to read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medflow import datasets
from medflow.config.places import NOT_A_RUN
from medflow.config.reading import read
from medflow.config.sections import FolderDataset, TableDataset
from medflow.datasets._declared import NEAR_DUPLICATES
from medflow.errors import ConfigError
from medflow.survey import TOLD_APART, Survey

_PLAIN = re.compile(r"[A-Za-z](?:[\w ./-]*\w)?", re.ASCII)
_WIDTH = 116


def refuse_name(name: str, folder: Path, *, force: bool) -> None:
    """Raise ConfigError where a dataset cannot be called ``name``, or its YAML would replace one of ``folder``."""
    if re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name) is None:
        raise ConfigError(
            f"{name!r} is no name for a dataset", hint="expected lower-case letters, digits and _, a letter first"
        )
    if name in (*datasets.names(), *datasets.GENERIC, *NOT_A_RUN):
        raise ConfigError(f"{name!r} is a name that medflow uses itself", hint=f"for example my_{name}")
    if (folder / f"{name}.yaml").exists() and not force:
        raise ConfigError(f"{name}.yaml is there already", hint="choose another name, or replace it with --force")


def write(name: str, found: Survey, images: Path, folder: Path) -> Path:
    """Write ``NAME.yaml`` into ``folder``, complete or not at all. Returns its path."""
    path, part = folder / f"{name}.yaml", folder / f".{name}.yaml.part"
    try:
        part.write_text(as_yaml(name, found, images), encoding="utf-8")
        if read(part.absolute().as_posix()).config.declare != found.declared:
            raise ConfigError(
                f"what {name}.yaml would say is not what was found",
                hint="this is a mistake of medflow's: please report it",
            )
        part.replace(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}", hint="check the folder's permissions"
        ) from error
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"a name holds bytes that are no text: {error.object!r}", hint="rename that folder or column"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return path


def as_yaml(name: str, found: Survey, images: Path) -> str:
    """Settings of a run, commented."""
    lines = [*_head(name, found), *_source(images), *_declare(found), *_rest(found)]
    return "\n".join(lines) + "\n"


# -- the parts of the file -----------------------------------------------------------------------


def _head(name: str, found: Survey) -> Iterator[str]:
    yield f"# medflow run {name}"
    yield "#"
    yield f"# Written by `medflow new {name}`, which found {len(found.listing.rows)} images. Read and correct it first."
    yield "# To look around first, on a CPU and without downloaded weights:"
    yield f"#   medflow run {name} train.epochs=1 model.pretrained=none"
    if found.notes:
        yield "#"
        yield "# What was noticed:"
        for note in found.notes:
            yield from _comment(f"- {note}")
    yield f"dataset: {name}"


def _source(images: Path) -> Iterator[str]:
    yield ""
    yield "source:"
    yield "  kind: folder"
    yield f"  path: {scalar(str(images.absolute()))}"


def _declare(found: Survey) -> Iterator[str]:
    declared = found.declared
    yield ""
    yield "declare:"
    yield f"  kind: {declared.kind}"
    yield f"  title: {scalar(declared.title)}"
    yield from _heads(found)
    yield f"  channels: {declared.channels}          # 1: gray, 3: colour"
    yield from _layout(declared) if isinstance(declared, FolderDataset) else _table(declared)
    if declared.mask_suffix:
        yield f"  mask_suffix: {scalar(declared.mask_suffix)}"
    yield from _groups(declared)
    yield "  # For cards, reports and whoever reads the results:"
    for key in ("modality", "licence", "citation", "limits"):
        yield f"  {key}: {scalar(getattr(declared, key))}"


def _heads(found: Survey) -> Iterator[str]:
    counts = found.label_counts()
    yield "  # A label that is not listed here stops the run. `ignore: [...]` leaves labels out on purpose."
    yield "  heads:"
    for head in found.declared.heads:
        yield f"    - kind: {head.kind}"
        yield f"      name: {head.name}"
        for key in ("column", "separator", "none_label"):
            value = getattr(head, key, None)
            if value is not None:
                yield f"      {key}: {scalar(value)}"
        yield "      labels:"
        for label in head.labels:
            images = counts[head.name][label] if head.kind != "mask" else found.masks()
            yield f"        - {scalar(label)}  # {images} images"


def _layout(declared: FolderDataset) -> Iterator[str]:
    yield "  # Folders of the images, at any depth below: {label}, {split} and {group} are what a folder's name says."
    yield f"  images: {scalar(declared.images)}"
    if declared.masks is not None:
        yield f"  masks: {scalar(declared.masks)}"


def _table(declared: TableDataset) -> Iterator[str]:
    yield f"  csv: {scalar(declared.csv)}"
    yield f"  encoding: {declared.encoding}"
    yield f"  delimiter: {scalar(declared.delimiter)}"
    yield f"  images: {scalar(declared.images)}"
    if declared.masks is not None:
        yield f"  masks: {scalar(declared.masks)}"
    yield "  columns:           # also: group, mask, split, source, age, sex, view, site, text"
    for name, column in declared.columns.model_dump(exclude_none=True).items():
        yield f"    {name}: {scalar(column)}"


def _groups(declared: FolderDataset | TableDataset) -> Iterator[str]:
    if declared.grouped_by == NEAR_DUPLICATES:
        yield from _comment(f"{TOLD_APART[0].upper()}{TOLD_APART[1:]}. If a name or a column tells the patient:", "  ")
        where = "`columns: {group: ...}`" if isinstance(declared, TableDataset) else "a folder {group} in `images`"
        yield from _comment(f"{where}, or a regular expression on the path, and `grouped_by: patient`:", "  ")
        yield "  # group_pattern: '(patient[0-9]+)'"
    yield f"  grouped_by: {declared.grouped_by}"


def _rest(found: Survey) -> Iterator[str]:
    parts = {row.official_split for row in found.listing.rows} - {None}
    if parts:
        yield ""
        yield f"# The dataset's own parts ({', '.join(sorted(map(str, parts)))}) are not used unless this is true."
        yield "split:"
        yield "  official: false"
    yield ""
    masks = found.card.mask_head() is not None
    yield f"recipe: {'scratch' if masks else 'finetune'}"
    yield "models:"
    yield "  - kind: monai_unet" if masks else "  - {kind: timm, name: resnet18}"
    if found.card.label_head() is None:
        yield ""
        yield "# There are masks and no labels, so Dice decides."
        for step in ("select", "choose", "promote"):
            yield f"{step}: {{metric: dice}}"
    yield ""
    yield "# What a model must reach on test rows to be promoted, by the lower end of its interval; none yet:"
    yield "# promote:"
    yield "#   floors: [{metric: " + ("auroc" if found.card.label_head() else "dice") + ", value: 0.80}]"


def _comment(text: str, indent: str = "") -> Iterator[str]:
    line = f"{indent}#"
    # What cannot be printed must not stand in YAML, not even in a comment.
    for word in "".join(letter if letter.isprintable() else " " for letter in text).split():
        if len(line) + len(word) >= _WIDTH:
            yield line
            line = f"{indent}#"
        line += f" {word}"
    yield line


def scalar(text: str) -> str:
    """A text in YAML: plain where that can be read in one way only, else in double quotes.

    Raises UnicodeEncodeError for a file name whose bytes are no text.
    """
    text.encode("utf-8")
    if _PLAIN.fullmatch(text) and text.lower() not in ("null", "true", "false"):
        return text
    # Not as JSON: it writes a letter beyond the first 65,536 as two, which YAML reads as two.
    letters = (letter if letter.isprintable() and letter not in '"\\' else f"\\U{ord(letter):08x}" for letter in text)
    return f'"{"".join(letters)}"'


# -- for the reader ------------------------------------------------------------------------------


def as_rows(found: Survey) -> Sequence[tuple[str, str]]:
    """What was understood, one fact a line."""
    declared, images = found.declared, len(found.listing.rows)
    groups, masks = found.groups(), found.masks()
    parts = [row.official_split for row in found.listing.rows if row.official_split]
    shares = ", ".join(f"{part} {parts.count(part)}" for part in ("train", "val", "test") if part in parts)
    rows = [("images", str(images)), ("read as", _read_as(declared))]
    for head, counts in found.label_counts().items():
        kind = next(item.kind for item in found.card.heads if item.name == head)
        rows.append((f"labels ({head})", f"{kind}, {len(counts)}"))
        rows += [(f"  {label}", str(count)) for label, count in counts.items()]
    rows.append(("masks", f"{masks} found, {images - masks} missing" if found.card.mask_head() else "none"))
    rows.append(("groups", f"{groups} ({declared.grouped_by})" if groups is not None else declared.grouped_by))
    rows.append(("official split", shares or "none"))
    rows.append(("channels", "3 (colour)" if declared.channels == 3 else "1 (gray)"))
    if isinstance(declared, TableDataset):
        rows += [
            (f"column of {name}", column) for name, column in declared.columns.model_dump(exclude_none=True).items()
        ]
    return [*rows, *((f"{item.severity}: {item.check}", _finding(item)) for item in found.listing.findings)]


def _read_as(declared: FolderDataset | TableDataset) -> str:
    masks = f", masks in {declared.masks}" if declared.masks else ""
    if isinstance(declared, FolderDataset):
        return f"folders {declared.images}{masks}"
    return f"table {Path(declared.csv).name}, images below {declared.images or 'the folder'}{masks}"


def _finding(item: Any) -> str:
    return f"{item.count} {item.message}, such as {item.examples[0]}"


def as_json(found: Survey, path: Path) -> dict[str, Any]:
    """The same for a program."""
    return {
        "file": str(path),
        "images": len(found.listing.rows),
        "labels": found.label_counts(),
        "masks": found.masks(),
        "groups": found.groups(),
        "declare": found.declared.model_dump(mode="json"),
        "findings": [item.model_dump(mode="json") for item in found.listing.findings],
        "notes": list(found.notes),
    }

"""A dataset that needs no code, `declare`: a folder of folders, or a table of paths. `medflow new` writes it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from medflow.config.sections.base import Section

PLACES = ("label", "split", "group")
"""What a folder's name may say, as ``{label}``, ``{split}`` and ``{group}`` in a folder pattern."""


class DeclaredHead(Section):
    kind: Literal["exclusive", "independent", "mask"]
    """`exclusive`: one label an image. `independent`: each label by itself. `mask`: pixels."""
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Lower-case identifier; names the model's output."""
    labels: tuple[str, ...] = Field(min_length=1)
    """Every label that may occur, in the order of the outputs; another one stops the run."""

    @model_validator(mode="after")
    def _labels_fit(self) -> DeclaredHead:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"the head {self.name} lists a label twice")
        if any(not label.strip() for label in self.labels):
            raise ValueError(f"the head {self.name} lists a label without a name")
        if self.kind == "mask" and len(self.labels) != 1:
            raise ValueError(f"the mask head {self.name} has {len(self.labels)} labels, expected exactly one")
        if self.kind == "exclusive" and len(self.labels) < 2:
            raise ValueError(f"the head {self.name} has one label, expected two or more to choose from")
        return self


class TableHead(DeclaredHead):
    column: str | None = None
    """Column that holds the label; None: one column of 0 and 1 for each label, named like it."""
    separator: str | None = None
    """What stands between several labels of one cell."""
    none_label: str | None = None
    """Word that says that none of the labels applies, such as No Finding: all of them are then 0."""

    @model_validator(mode="after")
    def _columns_fit(self) -> TableHead:
        if self.column is None and (self.separator is not None or self.none_label is not None):
            raise ValueError(f"the head {self.name} has a separator or a none_label, and no column")
        if self.kind != "independent" and (self.separator is not None or self.none_label is not None):
            raise ValueError(f"the head {self.name} is {self.kind}: separator and none_label are for independent heads")
        if self.kind == "mask" and self.column is not None:
            raise ValueError(f"the mask head {self.name} has a column; name it in `columns.mask`")
        if self.none_label is not None and self.none_label in self.labels:
            raise ValueError(f"the none_label of {self.name} is also one of its labels")
        return self


class Declared(Section):
    """What both kinds say. Folders and files are below the source, with / between names."""

    title: str = ""
    """For pages and cards; empty takes the dataset's name."""
    channels: Literal[1, 3] = 1
    """1 for radiographs, 3 for photographs."""
    grouped_by: str = "near-duplicates"
    """What a group is, such as patient or lesion; near-duplicates where nothing tells."""
    group_pattern: str | None = None
    """Regular expression, searched in an image's path; its first group (or all of it) is the patient."""
    mask_suffix: str = ""
    """What a mask's file name adds to its image's, such as _mask; the file type may differ."""
    ignore: tuple[str, ...] = ()
    """Labels that are left out on purpose; they are counted in the report."""
    modality: str = ""
    licence: str = ""
    citation: str = ""
    limits: str = ""
    """What a reader of results must know about this dataset."""

    @model_validator(mode="after")
    def _pattern_compiles(self) -> Declared:
        try:
            re.compile(self.group_pattern or "")
        except re.error as error:
            raise ValueError(f"group_pattern is no regular expression: {error}") from error
        return self


class FolderDataset(Declared):
    kind: Literal["folder"] = "folder"
    heads: tuple[DeclaredHead, ...] = Field(min_length=1)
    images: str = "{label}"
    """Folders that hold the images, at any depth below: fixed names, {label}, {split}, {group}, and * in a name."""
    masks: str | None = None
    """The same for masks, which are found by the same label, split and group and by name."""

    @model_validator(mode="after")
    def _folders_fit(self) -> FolderDataset:
        _check_folder("images", self.images, PLACES)
        _check_ignored(self.heads, self.ignore)
        labels = [head for head in self.heads if head.kind != "mask"]
        if any(head.kind == "independent" for head in labels) or len(labels) > 1:
            raise ValueError("folders can tell one exclusive head only; use `kind: table` for the others")
        if bool(labels) != ("{label}" in self.images):
            raise ValueError("expected {label} in `images` and one exclusive head, both or neither")
        if self.group_pattern is not None and "{group}" in self.images:
            raise ValueError("the group is told twice: by {group} in `images` and by group_pattern")
        masks = [head for head in self.heads if head.kind == "mask"]
        if len(masks) > 1 or bool(masks) != (self.masks is not None):
            raise ValueError("expected `masks` and one mask head, both or neither")
        if self.masks is not None:
            _check_folder("masks", self.masks, tuple(place for place in PLACES if f"{{{place}}}" in self.images))
            if self.masks == self.images and not self.mask_suffix:
                raise ValueError("masks lie beside images: a mask_suffix must tell them apart")
        return self


class TableColumns(Section):
    path: str
    """The image: a path below the source, or a file name, with or without its file type."""
    group: str | None = None
    """Patient or lesion."""
    mask: str | None = None
    """The mask's path, as in `path`."""
    split: str | None = None
    """train, val or test (also training, valid, validation, dev, testing)."""
    source: str | None = None
    age: str | None = None
    """Years; 058Y, 18M, 6W and 3D are read as DICOM writes them."""
    sex: str | None = None
    """F, M, female, male."""
    view: str | None = None
    site: str | None = None
    text: str | None = None
    """A report."""


class TableDataset(Declared):
    kind: Literal["table"] = "table"
    heads: tuple[TableHead, ...] = Field(min_length=1)
    csv: str
    """The table, below the source; or an absolute path."""
    encoding: Literal["utf-8", "utf-16", "latin-1"] = "utf-8"
    delimiter: str = Field(",", min_length=1, max_length=1)
    columns: TableColumns
    images: str = ""
    """Folder of the images; empty takes all of the source."""
    masks: str | None = None
    """Folder of masks that are named like their images; or name them in `columns.mask`."""

    @model_validator(mode="after")
    def _columns_fit(self) -> TableDataset:
        for name, folder in (("images", self.images), ("masks", self.masks or "")):
            _check_folder(name, folder, ())
        _check_ignored(self.heads, self.ignore)
        if not self.csv.startswith("/"):
            _check_folder("csv", self.csv, ())
        if self.group_pattern is not None and self.columns.group is not None:
            raise ValueError("the group is told twice: by columns.group and by group_pattern")
        masks = [head for head in self.heads if head.kind == "mask"]
        told = [place for place in (self.masks, self.columns.mask) if place is not None]
        if len(masks) > 1 or len(told) != len(masks):
            raise ValueError("expected one mask head, and its place in either `masks` or `columns.mask`")
        if self.masks is not None and self.masks == self.images and not self.mask_suffix:
            raise ValueError("masks lie beside images: a mask_suffix must tell them apart")
        if len({head.name for head in self.heads}) < len(self.heads):
            raise ValueError("two heads have the same name")
        return self


Declaration = Annotated[FolderDataset | TableDataset, Field(discriminator="kind")]


def _check_ignored(heads: Sequence[DeclaredHead], ignore: Sequence[str]) -> None:
    both = [label for head in heads for label in head.labels if label in ignore]
    if both:
        raise ValueError(f"{both[0]!r} is one of the labels and in `ignore` too; it can only be one of them")


def _check_folder(name: str, folder: str, places: tuple[str, ...]) -> None:
    """Raise ValueError where a folder pattern is absolute, leaves the source, or names what it cannot."""
    if folder.startswith("/") or ".." in folder.split("/") or "\\" in folder:
        raise ValueError(f"{name}: expected a folder below the source, with / between names, found {folder!r}")
    found = re.findall(r"\{[^{}/]*\}", folder)
    allowed = [f"{{{place}}}" for place in places]
    for item in found:
        if item not in allowed:
            raise ValueError(f"{name}: expected {' or '.join(allowed) or 'plain names'}, found {item}")
    if len(set(found)) < len(found):
        raise ValueError(f"{name}: {found[0]} stands twice")

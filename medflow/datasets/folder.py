"""``folder``: a dataset whose folders say what an image is. It needs no code: a YAML with `declare: {kind: folder}`.

::

    NORMAL/a.png, PNEUMONIA/b.png                      images: "{label}"
    train/NORMAL/a.png, test/NORMAL/b.png              images: "{split}/{label}"
    COVID/images/a.png, COVID/masks/a.png              images: "{label}/images", masks: "{label}/masks"
    images/a.png, masks/a_mask.png                     images: images, masks: masks, mask_suffix: _mask
    NORMAL/patient7/a.png                              images: "{label}/{group}"
"""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePosixPath

from medflow.config.sections import FolderDataset
from medflow.datasets import _declared
from medflow.datasets._declared import Drawers, Place
from medflow.datasets._generic_twin import write_folder_twin
from medflow.datasets._layout import told
from medflow.datasets._spec import DatasetSpec, Listing, Row
from medflow.records import Finding


def spec(name: str, declared: FolderDataset) -> DatasetSpec:
    """The declaration of dataset ``name`` as its YAML states it."""
    card = _declared.card(name, declared, declared.heads)
    return DatasetSpec(card=card, listing=partial(listing, declared), twin=partial(write_folder_twin, declared))


def listing(declared: FolderDataset, root: Path) -> Listing:
    """Every image below ``root``. Raises DataError where there is none in a folder that ``declared`` names."""
    drawers = _declared.sort(root, declared)
    wanted = {path: place for path, place in drawers.images.items() if place.says.get("label") not in declared.ignore}
    rows, headers = _declared.with_headers(root, (_row(declared, *item, drawers) for item in wanted.items()))
    ignored = drawers.images.keys() - wanted.keys()
    for path in ignored:
        drawers.mask_of(drawers.images[path])
    return Listing(rows, (*_findings(declared, wanted, rows), *headers, *_left_out(declared, drawers, sorted(ignored))))


def _row(declared: FolderDataset, path: PurePosixPath, place: Place, drawers: Drawers) -> Row:
    mask = drawers.mask_of(place)
    return Row(
        image_id=path.as_posix(),
        path=path.as_posix(),
        labels=_labels(declared, place),
        group=place.says.get("group") or _declared.group_of(declared.group_pattern, path),
        mask_path=mask.as_posix() if mask is not None else None,
        official_split=_declared.split_of(place.says.get("split")),
    )


def _labels(declared: FolderDataset, place: Place) -> dict[str, int | None]:
    """A folder that is no listed label leaves all of them unknown; that it does is an error of its own."""
    head = next((head for head in declared.heads if head.kind != "mask"), None)
    if head is None:
        return {}
    found = place.says["label"]
    known = found in head.labels
    return {f"{head.name}.{label}": int(label == found) if known else None for label in head.labels}


def _findings(
    declared: FolderDataset, images: dict[PurePosixPath, Place], rows: tuple[Row, ...]
) -> tuple[Finding, ...]:
    head = next((head for head in declared.heads if head.kind != "mask"), None)
    labels = set(head.labels) if head is not None else set()
    unknown = [path for path, place in images.items() if head is not None and place.says["label"] not in labels]
    parts = [
        path for path, place in images.items() if "split" in place.says and not _declared.split_of(place.says["split"])
    ]
    grouped = declared.group_pattern is not None
    return (
        *told(
            "unknown_label",
            "images in folders that `declare.heads` does not list; add them to `labels` or to `declare.ignore`",
            unknown,
            "error",
        ),
        *told("unknown_split", "images in a folder that is neither train, val nor test", parts, "warning"),
        *told(
            "group_unknown",
            "paths in which group_pattern finds no group",
            [row.path for row in rows if grouped and row.group is None],
            "warning",
        ),
    )


def _left_out(declared: FolderDataset, drawers: Drawers, ignored: list[PurePosixPath]) -> tuple[Finding, ...]:
    return (
        *told("ignored_label", f"images of {', '.join(declared.ignore)}, left out by `declare.ignore`", ignored),
        *_declared.mask_findings(drawers),
        *told("stray_file", "files that are no part of the dataset", drawers.stray),
    )

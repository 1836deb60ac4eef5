"""A model's heads beside those of another dataset: which truth of its images answers which head.

Each model has one label head at most, and one mask head at most; so has each dataset. A dataset's head answers the
model's of the same kind if the model knows each of its labels by the very name. A dataset may know fewer labels:
an exclusive class that it lacks is never true of its images, an independent label that it lacks is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import numpy as np

from medflow.errors import DataError
from medflow.records import HeadSpec, Manifest


@dataclass(frozen=True)
class Matched:
    heads: tuple[HeadSpec, ...]
    """The model's."""
    answered: Mapping[str, HeadSpec]
    """Name of a model's head → the dataset's head that holds its truth; heads without truth are left out."""

    def judged(self) -> frozenset[str]:
        return frozenset(self.answered)

    def notes(self) -> list[str]:
        """What is not as in training, in words."""
        missing = [head.name for head in self.heads if head.name not in self.answered]
        notes = [f"These images have no truth for {', '.join(missing)}, which is not judged."] if missing else []
        for head in self.heads:
            lacking = [label for label in head.labels if label not in self._labels(head)]
            if head.kind == "independent" and head.name in self.answered and lacking:
                notes.append(f"These images are not labelled for {', '.join(lacking)} ({head.name}).")
        return notes

    def _labels(self, head: HeadSpec) -> tuple[str, ...]:
        return self.answered[head.name].labels if head.name in self.answered else ()


def match(model: Sequence[HeadSpec], dataset: Sequence[HeadSpec]) -> Matched:
    """Pair the heads. Raises DataError where a head's kind or labels do not fit, or no head is in common."""
    answered = {}
    for head in model:
        other = next((item for item in dataset if (item.kind == "mask") == (head.kind == "mask")), None)
        if other is not None:
            _refuse(head, other)
            answered[head.name] = other
    if not answered:
        raise DataError(
            f"the model predicts {_words(model)}, and the images are labelled with {_words(dataset)}",
            hint="name the dataset whose reader tells what the model predicts, with --dataset",
        )
    return Matched(heads=tuple(model), answered=answered)


def as_model_reads(rows: Manifest, matched: Matched) -> Manifest:
    """The rows with the label columns of the model's heads in place of their own."""
    import pyarrow

    table = rows.table.drop_columns([name for head in rows.card.heads for name in head.columns()])
    for head in matched.heads:
        other = matched.answered.get(head.name)
        for label, name in zip(head.labels, head.columns(), strict=False):
            values = _column(rows, head, other, label)
            table = table.append_column(name, pyarrow.array(values, type=pyarrow.int8()))
    return replace(rows, card=rows.card.model_copy(update={"heads": matched.heads}), table=table)


def _column(rows: Manifest, head: HeadSpec, other: HeadSpec | None, label: str) -> list[int | None]:
    if other is not None and label in other.labels:
        return list(rows.table.column(f"{other.name}.{label}").to_pylist())
    if other is not None and head.kind == "exclusive":
        known = ~np.isnan(rows.targets(other)).any(axis=1)
        return [0 if is_known else None for is_known in known]
    return [None] * len(rows)


def _refuse(head: HeadSpec, other: HeadSpec) -> None:
    if head.kind != other.kind:
        raise DataError(
            f"the model's head {head.name} is {head.kind}, and the images' {other.name} is {other.kind}",
            hint="the truth must be of the kind that the model predicts; declare a dataset that reads it so",
        )
    strange = [label for label in other.labels if label not in head.labels]
    if strange:
        near = get_close_matches(strange[0], head.labels, n=1, cutoff=0.5)
        meant = f"did you mean {near[0]!r} by {strange[0]!r}? " if near else ""
        raise DataError(
            f"the images are labelled {', '.join(map(repr, strange[:3]))} ({other.name}), which the model does not "
            f"know; its {head.name} is one of {', '.join(map(repr, head.labels))}",
            hint=f"{meant}labels must have the model's names: `medflow new` declares a dataset whose labels you name, "
            "and `declare.ignore` leaves labels out",
        )


def _words(heads: Sequence[HeadSpec]) -> str:
    return ", ".join(f"{head.name} ({head.kind})" for head in heads) or "nothing"

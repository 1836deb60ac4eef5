"""Divide a manifest into train, val and test so that no patient, no file and no picture is in two of them.

Groups
    Rows are one group when they share the manifest's ``group`` (patient, lesion), or their bytes, or when
    their pictures are near-duplicates; and so on, transitively. The parts' ``group`` column holds the merged
    group, named after its smallest member, so the record's own refusal and every bootstrap see merged groups.

    Where patients or lesions should be known and are not, the split stops; ``allow_missing_groups`` goes on with
    what the other two tell, and a finding says so.

Roles that are given
    A row that ``Placement`` knows, by its group, its id or its bytes, keeps its role; only new groups are placed,
    towards the wanted shares. Where that gives one row several roles, or rows with different roles turn out to be
    one group, the whole group goes to the strictest of them, test before val before train: what a model was or
    will be tested on is never trained on. A finding counts the rows that so leave a part.
    A draw by other settings is a new one: a finding counts the rows that were test before and are learnt from now.
    The same rule serves official lists that cut a group: the group goes to test whole, and a finding counts
    it. So an official test part may gain rows, never lose one. A row that no list names counts as train.

Official lists
    Test and val are as listed. An official val below half of the wanted share (or none at all) is topped up
    from the groups of the official train part.

The result depends on the rows' content and the seed, not on their order. Rows of a part are sorted by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from medflow.config.sections import SplitConfig
from medflow.duplicates import connected, near_duplicate_groups
from medflow.errors import SplitError
from medflow.placement import ROLES, TEST, TRAIN, VAL, placed_rows
from medflow.records import Finding, HeadSpec, Manifest, Placement, Record, Split
from medflow.stratify import FREE, lacking, place

LISTED = "images of groups that official lists cut; each group went whole to"
JOINED = "images that lay in another part before, of groups joined or known otherwise since; each went whole to"
LEAST_OFFICIAL_VAL = 0.5
"""An official val below this part of the wanted share is topped up."""


class PartCount(Record):
    """How much of one stratum a part holds, for the plot of class balance by part."""

    role: str
    stratum: str
    """``all``, a label column ``<head>.<label>``, ``<head>.(none)``, ``<head>.(unknown)``, or ``<head>`` for a mask."""
    images: int
    groups: int
    share: float
    """Of the stratum's images in all parts, 0 to 1."""


@dataclass(frozen=True)
class _Strata:
    """What is spread evenly. ``rows`` is bool (N, strata); every row is in at least one stratum."""

    names: tuple[str, ...]
    rows: np.ndarray
    required: np.ndarray
    """bool (strata,): every part must hold some."""


@dataclass(frozen=True)
class _Groups:
    """Merged groups, sorted by name. ``of_row`` is int64 (N,), an index into ``names``."""

    names: np.ndarray
    of_row: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def sizes(self) -> np.ndarray:
        return np.bincount(self.of_row, minlength=len(self))

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """Images of each stratum in each group, int64 (groups, strata), from bool (N, strata)."""
        columns = [np.bincount(self.of_row[column], minlength=len(self)) for column in rows.T]
        return np.stack(columns, axis=1).astype(np.int64)

    def strictest(self, roles: np.ndarray) -> np.ndarray:
        """Role of each group, int64 (groups,): the highest of its rows' roles, or ``FREE``."""
        highest = np.full(len(self), FREE, dtype=np.int64)
        np.maximum.at(highest, self.of_row, roles)
        return highest


def split(manifest: Manifest, placement: Placement, config: SplitConfig) -> Split:
    """Divide ``manifest`` by ``config``, starting from the roles of ``placement``.

    Each part's ``findings`` say which groups were moved whole, and whose are unknown. Raises SplitError where rows
    have no group and that is not allowed, where official lists are asked for and there are none, and where a class
    cannot be in every part.
    """
    unknown = _unknown_groups(manifest, config)
    groups = _merge(manifest, config.near_duplicate_bits)
    strata = _strata(manifest)
    placed = placed_rows(manifest, placement)
    kept = groups.strictest(placed.max(axis=1))
    listed = _official_rows(manifest) if config.official else np.full(len(manifest), FREE)
    fixed = np.maximum(kept, groups.strictest(listed))
    if config.official:
        roles = _follow_lists(groups, strata, fixed, kept != FREE, config)
    else:
        fractions = (config.train, config.val, config.test)
        counts = groups.counts(strata.rows)
        roles = place(counts, groups.sizes(), fractions, fixed=fixed, required=strata.required, seed=config.seed)
    _refuse_missing(manifest, groups, strata, roles, config)
    findings = (
        *unknown,
        *_moved("split_official", "info", LISTED, groups, listed[:, None]),
        *_moved("split_placement", "warning", JOINED, groups, placed),
        *_drawn_anew(manifest, roles[groups.of_row], placement),
    )
    return _parts(manifest, groups, roles, findings)


def merged_groups(manifest: Manifest, near_duplicate_bits: int) -> np.ndarray:
    """Name of each row's group, object (N,), merged as at the top of this module."""
    groups = _merge(manifest, near_duplicate_bits)
    return groups.names[groups.of_row].astype(object)


def split_summary(parts: Split) -> tuple[PartCount, ...]:
    """Images and groups of every stratum in every part, parts in order, ``all`` first."""
    manifests = (parts.train, parts.val, parts.test)
    counted = [_count_strata(manifest) for manifest in manifests]
    names = dict.fromkeys(name for counts in counted for name in counts)
    totals = {name: sum(counts.get(name, (0, 0))[0] for counts in counted) for name in names}
    return tuple(
        PartCount(role=role, stratum=name, images=images, groups=groups, share=images / totals[name])
        for role, counts in zip(ROLES, counted, strict=True)
        for name in names
        for images, groups in [counts.get(name, (0, 0))]
    )


def _count_strata(manifest: Manifest) -> dict[str, tuple[int, int]]:
    """Stratum → images, groups."""
    strata, group = _strata(manifest), manifest.column("group")
    every = {"all": (len(manifest), len(set(group)))}
    columns = zip(strata.names, strata.rows.T, strict=True)
    return every | {name: (int(rows.sum()), len(set(group[rows]))) for name, rows in columns}


# -- groups and strata ---------------------------------------------------------------------------


def _unknown_groups(manifest: Manifest, config: SplitConfig) -> tuple[Finding, ...]:
    """One finding over the rows without a group. Raises SplitError where there are some and that is not allowed."""
    nameless = manifest.column("image_id")[manifest.group_unknown()]
    if not len(nameless):
        return ()
    kind = manifest.card.grouped_by
    if not config.allow_missing_groups:
        table = manifest.card.metadata
        remedy = (
            f"pass {table} with `--metadata FILE`" if table else f"let the dataset's table name each image's {kind}"
        )
        raise SplitError(
            f"{len(nameless)} of {len(manifest)} images have no group: images of one {kind} must lie in one part, and "
            f"the source does not tell the {kind}",
            hint=f"{remedy}, or set split.allow_missing_groups=true to keep near-duplicates together and nothing else",
        )
    message = (
        f"images whose {kind} is unknown: near-duplicates alone were kept together, so that a {kind} may be in more "
        "than one part and scores be too good"
    )
    examples = tuple(sorted(nameless.tolist())[:5])
    return (
        Finding(check="group_unknown", severity="warning", message=message, count=len(nameless), examples=examples),
    )


def _merge(manifest: Manifest, bits: int) -> _Groups:
    names, own = np.unique(manifest.groups().astype(str), return_inverse=True)
    keys = (own, _codes(manifest.column("sha256")), near_duplicate_groups(manifest.column("phash").tolist(), bits))
    component = _linked(keys)
    smallest = np.full(int(component.max(initial=-1)) + 1, len(names), dtype=np.int64)
    np.minimum.at(smallest, component, own)
    merged, of_row = np.unique(smallest[component], return_inverse=True)
    return _Groups(names=names[merged], of_row=of_row)


def _codes(values: np.ndarray) -> np.ndarray:
    """An integer for each distinct value, int64 (N,), one of its own for each None."""
    codes: dict[object, int] = {}
    return np.array([codes.setdefault(row if value is None else value, len(codes)) for row, value in enumerate(values)])


def _linked(keys: Sequence[np.ndarray]) -> np.ndarray:
    """Component of each row, int64 (N,): rows that share any key, transitively. Keys are int (N,), from 0."""
    count = len(keys[0])
    left = np.concatenate([np.arange(count)] * len(keys))
    offsets = np.cumsum([count, *(int(key.max(initial=-1)) + 1 for key in keys)])
    right = np.concatenate([key + offset for key, offset in zip(keys, offsets[:-1], strict=True)])
    return connected(int(offsets[-1]), left, right)[:count]


def _strata(manifest: Manifest) -> _Strata:
    """One stratum a label, the unlabelled, and images with and without a mask; empty strata only where required.

    The first label head is required in every part; so are masks where they are all that is learned.
    """
    leading = manifest.card.label_head() or manifest.card.mask_head()
    found: list[tuple[str, np.ndarray, bool]] = []
    for head in manifest.card.heads:
        leads = head == leading
        found.extend(
            _mask_strata(head, manifest, leads) if head.kind == "mask" else _label_strata(head, manifest, leads)
        )
    kept = [(name, rows, required) for name, rows, required in found if required or rows.any()]
    return _Strata(
        names=tuple(name for name, _, _ in kept),
        rows=np.stack([rows for _, rows, _ in kept], axis=1),
        required=np.array([required for _, _, required in kept]),
    )


def _label_strata(head: HeadSpec, manifest: Manifest, required: bool) -> list[tuple[str, np.ndarray, bool]]:
    targets = manifest.targets(head)
    positive, unknown = targets == 1, np.isnan(targets).all(axis=1)
    labels = [(name, positive[:, column], required) for column, name in enumerate(head.columns())]
    none = ~positive.any(axis=1) & ~unknown
    return [*labels, (f"{head.name}.(none)", none, False), (f"{head.name}.(unknown)", unknown, False)]


def _mask_strata(head: HeadSpec, manifest: Manifest, required: bool) -> list[tuple[str, np.ndarray, bool]]:
    masked = manifest.has_mask()
    return [(head.name, masked, required), (f"{head.name}.(none)", ~masked, False)]


# -- roles ---------------------------------------------------------------------------------------


def _official_rows(manifest: Manifest) -> np.ndarray:
    official = manifest.column("official_split").tolist()
    if "test" not in official or "train" not in official:
        raise SplitError(
            f"{manifest.card.name} has no official lists of train and test images",
            hint="set split.official=false to draw a split by group",
        )
    return np.array([TRAIN if role is None else ROLES.index(role) for role in official], dtype=np.int64)


def _follow_lists(
    groups: _Groups, strata: _Strata, fixed: np.ndarray, pinned: np.ndarray, config: SplitConfig
) -> np.ndarray:
    """Roles as listed, val topped up where it is too small; ``pinned`` groups stay where they are."""
    sizes = groups.sizes()
    share = config.val / (config.train + config.val)
    wanted = share * sizes[fixed != TEST].sum()
    if sizes[fixed == VAL].sum() >= LEAST_OFFICIAL_VAL * wanted:
        return fixed
    learning = np.flatnonzero(fixed != TEST)
    given = np.where((fixed == TRAIN) & ~pinned, FREE, fixed)
    roles = fixed.copy()
    roles[learning] = place(
        groups.counts(strata.rows)[learning],
        sizes[learning],
        (1 - share, share),
        fixed=given[learning],
        required=strata.required,
        seed=config.seed,
    )
    return roles


def _refuse_missing(
    manifest: Manifest, groups: _Groups, strata: _Strata, roles: np.ndarray, config: SplitConfig
) -> None:
    counts = groups.counts(strata.rows)
    missing = lacking(roles, counts, len(ROLES)) & strata.required
    if not missing.any():
        return
    classes = np.flatnonzero(missing.any(axis=0)).tolist()
    first, *others = classes
    there = ", ".join(
        f"{role} {int(((counts[:, first] > 0) & (roles == part)).sum())}" for part, role in enumerate(ROLES)
    )
    also = "".join(f"; nor is {strata.names[item]}: {_held(counts[:, item])}" for item in others)
    fewest = min(int((counts[:, item] > 0).sum()) for item in classes)
    cause = "a class needs at least 3 groups" if fewest < len(ROLES) else "they cannot be spread over three parts"
    raise SplitError(
        f"class {strata.names[first]} is not in every part: {_held(counts[:, first])} ({there}){also}; {cause}",
        hint=_hint(manifest, fewest, config),
    )


def _held(counts: np.ndarray) -> str:
    return f"{int(counts.sum())} images in {int((counts > 0).sum())} groups"


def _hint(manifest: Manifest, fewest: int, config: SplitConfig) -> str:
    if fewest < len(ROLES):
        if manifest.source is not None and manifest.source.generated is not None:
            return f"generate more, such as source.images={2 * manifest.source.generated.images}"
        return "add images of other patients, or leave the class out of the dataset"
    if config.official:
        return "set split.official=false to draw a split by group"
    return "lower split.near_duplicate_bits if pictures that differ were joined, or try another split.seed"


# -- parts ---------------------------------------------------------------------------------------


def _moved(
    check: str, severity: Literal["warning", "info"], message: str, groups: _Groups, given: np.ndarray
) -> tuple[Finding, ...]:
    """One finding for each role that took whole groups of which some rows were given another; ``given`` (N, ways)."""
    least = np.where(given == FREE, len(ROLES), given).min(axis=1)
    went = groups.strictest(given.max(axis=1))
    findings = []
    for role in (VAL, TEST):
        rows = (went[groups.of_row] == role) & (least < role)
        moved = np.unique(groups.of_row[rows])
        if len(moved):
            names = tuple(groups.names[moved][:5].tolist())
            text = f"{message} {ROLES[role]} ({len(moved)} groups)"
            found = Finding(check=check, severity=severity, message=text, count=int(rows.sum()), examples=names)
            findings.append(found)
    return tuple(findings)


def _drawn_anew(manifest: Manifest, roles: np.ndarray, placement: Placement) -> tuple[Finding, ...]:
    """One finding over the rows that were test under other settings and are learnt from under these."""
    once = frozenset(placement.once_test)
    ids, digests = manifest.column("image_id").tolist(), manifest.column("sha256").tolist()
    was_test = np.array([bool(once & {image, digest}) for image, digest in zip(ids, digests, strict=True)], dtype=bool)
    moved = was_test & (roles != TEST)
    if not moved.any():
        return ()
    message = (
        "images that were test under the split settings of an earlier run are now in train or val: models of either "
        "draw are compared on rows alone that neither learnt from"
    )
    examples = tuple(sorted(manifest.column("image_id")[moved].tolist())[:5])
    return (
        Finding(check="split_redrawn", severity="warning", message=message, count=int(moved.sum()), examples=examples),
    )


def _parts(manifest: Manifest, groups: _Groups, roles: np.ndarray, findings: tuple[Finding, ...]) -> Split:
    import pyarrow

    names = pyarrow.array(groups.names[groups.of_row].tolist(), type=pyarrow.string())
    column = manifest.table.column_names.index("group")
    merged = replace(manifest, table=manifest.table.set_column(column, "group", names), findings=findings)
    order = np.argsort(manifest.column("image_id").astype(str), kind="stable")
    row_roles = roles[groups.of_row][order]
    train, val, test = (merged.take(order[row_roles == part]) for part in range(len(ROLES)))
    return Split(train=train, val=val, test=test)

"""What every dataset must bring, whichever it is: its twin goes from listing to normalized pixels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from medflow import checks, datasets, fetch
from medflow.config.sections import IngestConfig, SourceConfig, SplitConfig, ValidateConfig
from medflow.duplicates import near_duplicate_groups
from medflow.ingest import ingest
from medflow.normalize import normalize
from medflow.records import Placement
from medflow.split import split

#: Planted conflicts and labels of no class would stop a run, as they should; here they are left out instead.
LENIENT = ValidateConfig(label_conflict="warning", label_impossible="warning")


@pytest.mark.parametrize("name", datasets.names())
def test_a_faulty_twin_goes_from_listing_to_normalized_pixels(name: str, tmp_path: Path) -> None:
    spec = datasets.get(name)
    head = spec.card.label_head()
    images = max(100, 20 * len(head.labels)) if head else 100
    source = fetch.resolve(SourceConfig(kind="generated", images=images, seed=3, planted_faults=True), spec.card)
    manifest, pixels = ingest(source, spec, (24,), IngestConfig(), tmp_path, workers=1)
    errors = [error for error in manifest.column("error") if error]
    assert errors and len(manifest) == pixels.index.rows + len(errors)
    assert not manifest.group_unknown().any(), "what is generated in a run knows its groups"

    checked = checks.check(manifest, LENIENT)
    found = {item.check: item for item in checked.findings.findings}
    assert found["unreadable"].count == len(errors) and found["duplicate"].count >= 2
    assert len(checked.kept) == len(manifest) - checked.findings.quarantined

    parts = split(checked.kept, Placement(), SplitConfig())  # Split itself refuses a shared group, id or file
    rows = [parts.train, parts.val, parts.test]
    assert sum(map(len, rows)) == len(checked.kept) and all(len(part) >= 5 for part in rows)
    assert head is None or all((part.targets(head) == 1).any(axis=0).all() for part in rows), (
        "every part has each label"
    )

    normalization = normalize(parts.train, pixels)
    [stats] = normalization.sizes
    assert len(stats.mean) == spec.card.channels and all(0.05 < value < 0.95 for value in stats.mean)


@pytest.mark.parametrize("name", datasets.names())
def test_pictures_of_different_people_are_no_near_duplicates(name: str, tmp_path: Path) -> None:
    """A twin whose pictures all look alike would be one group, and no split of it would mean anything."""
    spec = datasets.get(name)
    source = fetch.resolve(SourceConfig(kind="generated", images=60, seed=5), spec.card)
    manifest, _ = ingest(source, spec, (16,), IngestConfig(), tmp_path, workers=1)
    near = near_duplicate_groups(manifest.column("phash").tolist(), 3)
    joined = Counter(cluster for cluster, _ in set(zip(near, manifest.groups(), strict=True)))
    assert max(joined.values()) <= 2 and sum(count > 1 for count in joined.values()) <= 2


@pytest.mark.parametrize("name", datasets.names())
def test_a_metadata_file_has_a_name_and_a_reader(name: str) -> None:
    spec = datasets.get(name)
    assert bool(spec.card.metadata) == (spec.listing_with is not None)

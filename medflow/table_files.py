"""Manifest and Predictions as named files: Parquet for the rows, JSON for the rest."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping

import numpy as np
import pyarrow
import pyarrow.parquet

from medflow.records import DatasetCard, Finding, HeadSpec, Manifest, Predictions, Source, Threshold

ROWS = "rows.parquet"
FACTS = "facts.json"
Reader = Callable[[str], bytes]


def manifest_files(manifest: Manifest) -> Mapping[str, bytes]:
    """File name → bytes of a manifest."""
    facts = {
        "card": manifest.card.model_dump(mode="json"),
        "source": manifest.source.model_dump(mode="json") if manifest.source else None,
        "findings": [finding.model_dump(mode="json") for finding in manifest.findings],
    }
    return {ROWS: _parquet(manifest.table), FACTS: json.dumps(facts, indent=1).encode()}


def read_manifest(read: Reader) -> Manifest:
    """The manifest whose files ``read`` returns by name."""
    facts = json.loads(read(FACTS))
    return Manifest(
        card=DatasetCard.model_validate(facts["card"]),
        table=pyarrow.parquet.read_table(io.BytesIO(read(ROWS))),
        source=Source.model_validate(facts["source"]) if facts["source"] else None,
        findings=tuple(Finding.model_validate(item) for item in facts["findings"]),
    )


def predictions_files(predictions: Predictions) -> Mapping[str, bytes]:
    """File name → bytes of predictions; one column per array column, named ``<kind>|<head>|<index>``."""
    columns: dict[str, np.ndarray] = {"image_id": predictions.image_id, "group": predictions.group}
    for kind, arrays in _arrays(predictions).items():
        for head, array in arrays.items():
            columns |= {f"{kind}|{head}|{index}": array[:, index] for index in range(array.shape[1])}
    facts = {
        "bundle_digest": predictions.bundle_digest,
        "rows_digest": predictions.rows_digest,
        "heads": [head.model_dump(mode="json") for head in predictions.heads],
        "thresholds": [threshold.model_dump(mode="json") for threshold in predictions.thresholds],
    }
    table = pyarrow.table({name: pyarrow.array(_plain(column)) for name, column in columns.items()})
    return {ROWS: _parquet(table), FACTS: json.dumps(facts, indent=1).encode()}


def read_predictions(read: Reader) -> Predictions:
    """The predictions whose files ``read`` returns by name."""
    facts = json.loads(read(FACTS))
    table = pyarrow.parquet.read_table(io.BytesIO(read(ROWS)))
    found: dict[str, dict[str, list[np.ndarray]]] = {"probabilities": {}, "targets": {}, "mask_scores": {}}
    for name in table.column_names:
        kind, _, rest = name.partition("|")
        if kind in found and rest:
            # The index is the last part, and columns are stored in its order; a head's name has no bar.
            found[kind].setdefault(rest.partition("|")[0], []).append(table.column(name).to_numpy().astype(np.float32))
    stacked = {kind: {head: np.stack(parts, axis=1) for head, parts in heads.items()} for kind, heads in found.items()}
    return Predictions(
        bundle_digest=facts["bundle_digest"],
        rows_digest=facts["rows_digest"],
        heads=tuple(HeadSpec.model_validate(head) for head in facts["heads"]),
        image_id=np.array(table.column("image_id").to_pylist(), dtype=object),
        group=np.array(table.column("group").to_pylist(), dtype=object),
        probabilities=stacked["probabilities"],
        targets=stacked["targets"],
        mask_scores=stacked["mask_scores"],
        thresholds=tuple(Threshold.model_validate(item) for item in facts["thresholds"]),
    )


def _arrays(predictions: Predictions) -> Mapping[str, Mapping[str, np.ndarray]]:
    return {
        "probabilities": predictions.probabilities,
        "targets": predictions.targets,
        "mask_scores": predictions.mask_scores,
    }


def _plain(column: np.ndarray) -> np.ndarray | list[str]:
    return [str(value) for value in column] if column.dtype == object or column.dtype.kind in "US" else column


def _parquet(table: pyarrow.Table) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()

"""One adapter a file. Importing this package registers the materializers, and does nothing else."""

import materializers
from steps.choose import choose
from steps.evaluate import evaluate
from steps.evaluate_incumbent import evaluate_incumbent
from steps.export_onnx import export_onnx
from steps.incumbent import incumbent
from steps.ingest import ingest
from steps.ingest_shard import ingest_shard
from steps.merge_shards import merge_shards
from steps.normalize import normalize
from steps.package import package
from steps.promote import promote
from steps.prune import prune
from steps.quantize import quantize
from steps.record import record
from steps.resolve import resolve
from steps.select import select
from steps.split import split
from steps.train import train
from steps.tune import tune
from steps.validate import validate

__all__ = [
    "choose",
    "evaluate",
    "evaluate_incumbent",
    "export_onnx",
    "incumbent",
    "ingest",
    "ingest_shard",
    "materializers",
    "merge_shards",
    "normalize",
    "package",
    "promote",
    "prune",
    "quantize",
    "record",
    "resolve",
    "select",
    "split",
    "train",
    "tune",
    "validate",
]

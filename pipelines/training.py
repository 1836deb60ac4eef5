"""The one definition: from a source to a promoted model. Registered under each dataset's name.

::

    resolve° ─ ingest ─ validate ─ split ─ normalize ─ ( train ─ evaluate(val) )* ─ select ─┐
        ┌───────────────────────────────────────────────────────────────────────────────────┘
        ├───────── export_onnx ─┬──────────┐
        │                       ├─ quantize ┤
        └─ prune ─ export_onnx ─┼──────────┤
                                └─ quantize ┴─ evaluate(val) of each graph ─ choose ─ evaluate(test) ─┐
        ┌─────────────────────────────────────────────────────────────────────────────────────────────┘
        └─ package ─ incumbent° ─ evaluate(test) of it ─ promote° ─ record°

    * once for every model listed in the YAML          ° never cached, and cheap

With `ingest.shards` above 1, `ingest` is that many steps ``ingest_shard_<n>`` and one named `ingest` that merges them.
The fan-out is a plain loop, so that the graph is known before the run and is the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zenml import pipeline

import steps
from medflow import datasets, model_files
from medflow.config.sections import RunConfig
from medflow.platform import store_access, training_tracker
from medflow.platform.caching import sound
from medflow.records import HeadSpec


def training(config: RunConfig):
    """The training pipeline of one dataset. Call the result to run it on the active stack."""

    @pipeline(name=config.dataset, enable_cache=True, extra=training_tracker.settings(config))
    def medflow_training():
        rows = parted(config)
        selected = _train(config, rows.train, rows.val, rows.pixels)
        chosen = _compress(config, selected, rows.train, rows.val, rows.pixels)
        _ship(config, chosen, rows)

    return medflow_training


@dataclass(frozen=True)
class Parted:
    """Outputs of the data steps."""

    train: Any
    val: Any
    test: Any
    manifest: Any
    pixels: Any
    challenge: Any


def parted(config: RunConfig) -> Parted:
    """The steps from the source to three sets of rows, which every pipeline of a dataset begins with."""
    source, placement, challenge = sound(steps.resolve)(
        dataset=config.dataset,
        declared=config.declare,
        config=config.source,
        split=config.split,
        stage=config.promote.stage,
    )
    manifest, pixels = _ingest(config, source)
    valid, _, _ = sound(steps.validate)(manifest=manifest, config=config.validate_)
    train, val, test, _ = sound(steps.split)(valid=valid, placement=placement, config=config.split)
    return Parted(train=train, val=val, test=test, manifest=manifest, pixels=pixels, challenge=challenge)


def _ingest(config: RunConfig, source):
    """One step, or `ingest.shards` of them and one that puts their results together under the same name."""
    also = [datasets.module_of(config.dataset, config.declare)]
    what: dict[str, Any] = {
        "source": source, "dataset": config.dataset, "declared": config.declare, "sizes": sizes(config),
        "config": config.ingest,
    }  # fmt: skip
    if config.ingest.shards == 1:
        return sound(steps.ingest, also=also)(**what)
    shards = [
        sound(steps.ingest_shard, also=also)(**what, shard=shard, id=f"ingest_shard_{shard}")
        for shard in range(config.ingest.shards)
    ]
    manifests, pixels, shares = (list(outputs) for outputs in zip(*shards, strict=True))
    return sound(steps.merge_shards)(manifests=manifests, pixels=pixels, shares=shares, id="ingest")


def sizes(config: RunConfig) -> tuple[int, ...]:
    """Every input size that must be stored, in pixels, ascending."""
    return tuple(sorted({*(model.size for model in config.models if model.size), *config.ingest.extra_sizes}))


def heads(config: RunConfig) -> tuple[HeadSpec, ...]:
    """The heads to learn."""
    declared = datasets.get(config.dataset, config.declare).card.heads
    return tuple(head for head in declared if config.heads is None or head.name in config.heads)


def _train(config: RunConfig, train, val, pixels):
    normalization = sound(steps.normalize)(train=train, pixels=pixels)
    bundles, evaluations = [], []
    for model in config.models:
        files = model_files.named((model,), store_access.of_store())
        bundle, _ = sound(steps.train, files=files)(
            train=train, val=val, pixels=pixels, normalization=normalization, heads=heads(config),
            model=model, config=config.train.determining(), id=f"train_{model.key}",
        )  # fmt: skip
        bundles.append(bundle)
        evaluations.append(_evaluate_val(config, bundle, val, pixels, model.key))
    selected, _ = sound(steps.select)(bundles=bundles, evaluations=evaluations, config=config.select)
    return selected


def _compress(config: RunConfig, selected, train, val, pixels):
    trained = {"": selected}
    if config.prune.enabled:
        trained["pruned_"] = sound(steps.prune)(
            bundle=selected, train=train, val=val, pixels=pixels, config=config.prune,
            training=config.train.determining(),
        )  # fmt: skip
    graphs = {}
    for prefix, bundle in trained.items():
        graphs[f"{prefix}onnx"] = sound(steps.export_onnx)(
            bundle=bundle, val=val, pixels=pixels, config=config.export, id=f"export_{prefix}onnx"
        )
        if config.quantize.enabled:
            graphs[f"{prefix}int8"] = sound(steps.quantize)(
                bundle=graphs[f"{prefix}onnx"], train=train, val=val, pixels=pixels, config=config.quantize,
                id=f"quantize_{prefix}int8",
            )  # fmt: skip
    evaluations = [_evaluate_val(config, graph, val, pixels, name) for name, graph in graphs.items()]
    chosen, _ = sound(steps.choose)(bundles=list(graphs.values()), evaluations=evaluations, config=config.choose)
    return chosen


def _ship(config: RunConfig, chosen, parted: Parted):
    evaluation, predictions, _ = sound(steps.evaluate)(
        bundle=chosen, rows=parted.test, pixels=parted.pixels, config=config.evaluate, role="test", id="evaluate_test"
    )
    package = sound(steps.package)(bundle=chosen, evaluation=evaluation)
    incumbent = sound(steps.incumbent)(challenge=parted.challenge, package=package)
    incumbent_evaluation, incumbent_predictions, unseen = sound(steps.evaluate_incumbent)(
        incumbent=incumbent, rows=parted.test, manifest=parted.manifest, pixels=parted.pixels, config=config.evaluate,
        bits=config.split.near_duplicate_bits,
    )  # fmt: skip
    promotion = sound(steps.promote)(
        package=package, evaluation=evaluation, predictions=predictions, incumbent_evaluation=incumbent_evaluation,
        incumbent_predictions=incumbent_predictions, unseen=unseen, challenge=parted.challenge, config=config.promote,
    )  # fmt: skip
    sound(steps.record)(dataset=config.dataset, package=package, evaluation=evaluation, promotion=promotion)


def _evaluate_val(config: RunConfig, bundle, val, pixels, name: str):
    evaluation, _, _ = sound(steps.evaluate)(
        bundle=bundle, rows=val, pixels=pixels, config=config.evaluate, role="val", id=f"evaluate_val_{name}"
    )
    return evaluation

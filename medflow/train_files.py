"""What a training leaves for people, beside its bundle: its settings, its curves, a batch as it was augmented."""

from __future__ import annotations

from pathlib import Path

import yaml

from medflow.config.sections import TrainConfig
from medflow.loader import Examples, Sample, sample
from medflow.pixels import open_store
from medflow.records import Bundle, Manifest, ModelCard, Pixels
from medflow.report import curves, images
from medflow.report.figure import Figure
from medflow.sampling import chances
from medflow.tracking import Tracker


def log_files(bundle: Bundle, rows: Manifest, pixels: Pixels, tracker: Tracker, work: Path) -> Figure:
    """Give ``config.yaml``, the training curves, the augmented batch and the model to the tracker.

    Returns the picture of the batch.
    """
    batch = augmented_batch(bundle.card, rows, pixels)
    drawn = images.augmented(batch.image_id, batch.before, batch.after, batch.masks_before, batch.masks_after)
    files = {"config/config.yaml": config_yaml(bundle.card).encode(), "augmentation/augmentation.png": drawn.png}
    if bundle.card.training:
        files["curves/training_curves.png"] = curves.training_curves(bundle.card.training).png
    for name, data in files.items():
        path = work / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        tracker.file(path, path.parent.name)
    # Neither the golden set nor a tokenizer: the one holds images, the other words, of the hospital.
    tracker.model((bundle.weights, bundle.root / Bundle.CARD), bundle.card.name)
    return drawn


def augmented_batch(card: ModelCard, rows: Manifest, pixels: Pixels) -> Sample:
    """The first rows that the model's first epoch drew, by its sampler, before and after augmentation.

    A row that was drawn twice is there twice. Mixup and cutmix, which come later, are not shown.
    """
    config = TrainConfig.model_validate(card.training_config)
    examples = Examples(rows, open_store(pixels, card.preprocess.pixels.height), card.heads)
    return sample(examples, config.augment, config.seed, chances=chances(config.sampler, examples.targets))


def config_yaml(card: ModelCard) -> str:
    """The model's and the training's settings, in the sections of a run's YAML."""
    settings = {"dataset": card.dataset.name, "models": [dict(card.model)], "train": dict(card.training_config)}
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=120)

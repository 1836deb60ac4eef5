"""The settings of a run: frozen, one section a step, each setting beside what it sets.

Each step is handed its own section and nothing else, so that its cache key stays narrow.
``medflow.config.reading.load`` fills these from a YAML and the command line.
"""

from __future__ import annotations

from medflow.config.sections.augment import Augment
from medflow.config.sections.base import Fraction, Positive, Section
from medflow.config.sections.compression import ChooseConfig, ExportConfig, PruneConfig, QuantizeConfig
from medflow.config.sections.data import IngestConfig, Severity, SourceConfig, SplitConfig, ValidateConfig
from medflow.config.sections.declared import (
    Declaration,
    Declared,
    DeclaredHead,
    FolderDataset,
    TableColumns,
    TableDataset,
    TableHead,
)
from medflow.config.sections.judging import EvaluateConfig, Floor, PromoteConfig, SelectConfig
from medflow.config.sections.losses import FITS, Loss, LossConfig
from medflow.config.sections.models import (
    DualPathModel,
    EncoderModel,
    ImageTextModel,
    LabelLayers,
    ModelCommon,
    ModelConfig,
    MonaiUNet,
    SmpModel,
    TimmModel,
)
from medflow.config.sections.run import RunConfig
from medflow.config.sections.text import TextEncoder
from medflow.config.sections.tracking import TrackerName, WandbConfig
from medflow.config.sections.training import Calibrate, Mixing, Stage, TrainConfig
from medflow.config.sections.tuning import Dimension, SearchConfig, TuneBudget

__all__ = [
    "FITS",
    "Augment",
    "Calibrate",
    "ChooseConfig",
    "Declaration",
    "Declared",
    "DeclaredHead",
    "Dimension",
    "DualPathModel",
    "EncoderModel",
    "EvaluateConfig",
    "ExportConfig",
    "Floor",
    "FolderDataset",
    "Fraction",
    "ImageTextModel",
    "IngestConfig",
    "LabelLayers",
    "Loss",
    "LossConfig",
    "Mixing",
    "ModelCommon",
    "ModelConfig",
    "MonaiUNet",
    "Positive",
    "PromoteConfig",
    "PruneConfig",
    "QuantizeConfig",
    "RunConfig",
    "SearchConfig",
    "Section",
    "SelectConfig",
    "Severity",
    "SmpModel",
    "SourceConfig",
    "SplitConfig",
    "Stage",
    "TableColumns",
    "TableDataset",
    "TableHead",
    "TextEncoder",
    "TimmModel",
    "TrackerName",
    "TrainConfig",
    "TuneBudget",
    "ValidateConfig",
    "WandbConfig",
]

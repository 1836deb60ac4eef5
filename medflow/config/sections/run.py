"""A whole run: one section a step."""

from __future__ import annotations

import re

from pydantic import ConfigDict, Field, model_validator

from medflow.config.sections.base import Section
from medflow.config.sections.compression import ChooseConfig, ExportConfig, PruneConfig, QuantizeConfig
from medflow.config.sections.data import IngestConfig, SourceConfig, SplitConfig, ValidateConfig
from medflow.config.sections.declared import Declaration
from medflow.config.sections.judging import EvaluateConfig, PromoteConfig, SelectConfig
from medflow.config.sections.models import ModelConfig
from medflow.config.sections.tracking import TrackerName, WandbConfig
from medflow.config.sections.training import TrainConfig


class RunConfig(Section):
    dataset: str
    """A dataset of `medflow datasets`."""
    declare: Declaration | None = None
    """A dataset of your own, which needs no code; `medflow new` writes this."""
    heads: tuple[str, ...] | None = None
    """Which of the dataset's heads to learn; None takes all."""
    source: SourceConfig = SourceConfig()
    ingest: IngestConfig = IngestConfig()
    validate_: ValidateConfig = Field(ValidateConfig(), alias="validate")
    split: SplitConfig = SplitConfig()
    models: tuple[ModelConfig, ...] = Field(min_length=1)
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    select: SelectConfig = SelectConfig()
    prune: PruneConfig = PruneConfig()
    export: ExportConfig = ExportConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    choose: ChooseConfig = ChooseConfig()
    promote: PromoteConfig = PromoteConfig()
    trackers: tuple[TrackerName, ...] = ()
    """Where training is logged beside MLflow; adding one trains nothing anew."""
    wandb: WandbConfig = WandbConfig()

    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="after")
    def _name_fits(self) -> RunConfig:
        # The name of a declared dataset becomes a folder's, a pipeline's, a model's and a service's.
        if self.declare is not None and not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", self.dataset):
            raise ValueError(
                f"dataset: expected lower-case letters, digits and underscores, a letter first, found {self.dataset!r}"
            )
        return self

    @model_validator(mode="after")
    def _models_differ(self) -> RunConfig:
        keys = [model.key for model in self.models]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"two models are called {twice[0]!r}; give one of them an `id`")
        return self

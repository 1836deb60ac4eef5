"""How a model of kind `image_text` reads reports: `models.N.text`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medflow.config.sections.base import Section

SMALL = "small"


class TextEncoder(Section):
    encoder: str = "dmis-lab/biobert-base-cased-v1.2"
    """A transformers encoder of the Hugging Face hub (BioBERT by default), the folder of one, also as
    s3://BUCKET/PREFIX, or `small`: a BERT with random weights, whose WordPiece vocabulary is learned from the training
    reports. Weights are read from safetensors only."""
    offline: Literal["small", "error"] = "small"
    """What happens where the encoder is not on this machine and the hub does not answer: `small` takes the small
    encoder in its place and says so in the log, in the card and in every page; `error` stops."""
    instead_of: str = ""
    """Filled in by the run itself: the encoder for which `small` stands in."""
    max_tokens: int = Field(128, ge=8, le=512)
    """Tokens of a report that are read; the rest is cut off."""
    vocabulary: int = Field(2000, ge=16, le=60_000)
    """Of the small encoder: word pieces at most."""
    width: int = Field(64, ge=8, le=1024)
    """Of the small encoder: features of a token."""
    layers: int = Field(2, ge=1, le=24)
    """Of the small encoder."""
    heads: int = Field(4, ge=1, le=16)
    """Of the small encoder: heads of its attention; they must divide `width`."""

    @model_validator(mode="after")
    def _heads_divide(self) -> TextEncoder:
        if self.width % self.heads:
            raise ValueError(f"heads is {self.heads}, expected a divisor of width, {self.width}")
        return self

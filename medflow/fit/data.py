"""What a network learns from."""

from __future__ import annotations

from dataclasses import dataclass

from medflow.loader import Examples
from medflow.pixels import open_store
from medflow.records import HeadSpec, Manifest, Pixels, Preprocess, content, digest_of
from medflow.text import Tokenizer


@dataclass(frozen=True)
class Data:
    """What a network learns from: rows, their pixels, the heads asked for and the size they are read at."""

    train: Manifest
    val: Manifest
    pixels: Pixels
    heads: tuple[HeadSpec, ...]
    preprocess: Preprocess
    tokenizer: Tokenizer | None = None
    """Of a network that reads reports."""

    def examples(self, part: Manifest) -> Examples:
        store = open_store(self.pixels, self.preprocess.pixels.height)
        return Examples(part, store, self.heads, self.tokenizer)

    def digest(self) -> str:
        parts = [self.train.digest(), self.val.digest(), self.pixels.digest()]
        reading = [self.tokenizer.sha256()] if self.tokenizer else []
        return digest_of([*parts, [content(head) for head in self.heads], content(self.preprocess), *reading])

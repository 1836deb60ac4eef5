"""Reports as token ids, in training and in serving by the same file: a bundle's ``tokenizer.json``. No torch.

A report is a string; None, or one of white space alone, is a missing report. There is no difference between the two:
nobody dictates an empty report to say something.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from medflow.errors import ArtifactError
from medflow.records import Bundle
from medflow.wordpiece import END, PAD, START, UNKNOWN, learn_vocabulary

if TYPE_CHECKING:
    import tokenizers

#: Characters of a report that are read; the service refuses longer ones.
MAX_CHARACTERS = 20_000
#: Names of a graph's inputs, beside the images.
INPUT_IDS, ATTENTION_MASK = "input_ids", "attention_mask"


@dataclass(frozen=True)
class Tokens:
    """n reports. A row whose mask is all 0 has no report."""

    input_ids: np.ndarray
    """int64 (n, max_tokens)."""
    attention_mask: np.ndarray
    """int64 (n, max_tokens): 1 where there is a token, 0 where the row is filled up."""

    def named(self) -> dict[str, np.ndarray]:
        """The arrays by the names of the graph's inputs, in their order."""
        return {INPUT_IDS: self.input_ids, ATTENTION_MASK: self.attention_mask}

    def take(self, rows: np.ndarray | slice) -> Tokens:
        return Tokens(self.input_ids[rows], self.attention_mask[rows])


class Tokenizer:
    """Reports to ids, always ``max_tokens`` a row. Safe to call from several threads."""

    def __init__(self, document: str) -> None:
        """``document`` is a tokenizer.json with its truncation. Raises ArtifactError where it is none."""
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(document)
            self.max_tokens = int((self._tokenizer.truncation or {})["max_length"])
        except Exception as error:  # the package raises Exception itself
            raise ArtifactError(
                f"the tokenizer cannot be read: {str(error).splitlines()[0]}",
                hint="`medflow verify` finds damaged artifacts; run the step that made this one again",
            ) from error
        # "[SEP]" in a report is five characters that someone typed, not the end of the report.
        self._tokenizer.encode_special_tokens = True
        self.document = document

    @classmethod
    def of(cls, bundle: Bundle) -> Self | None:
        """The bundle's tokenizer, or None where its model reads no reports. Raises ArtifactError."""
        if bundle.card.text is None:
            return None
        data = bundle.tokenizer.read_bytes() if bundle.tokenizer.is_file() else b""
        if hashlib.sha256(data).hexdigest() != bundle.card.text.tokenizer_sha256:
            raise ArtifactError(
                f"{bundle.tokenizer} is missing, or does not have the sha256 that its card states",
                hint="the bundle is incomplete: run the step that made it again",
            )
        return cls(data.decode())

    def __call__(self, reports: Sequence[str | None]) -> Tokens:
        ids = np.zeros((len(reports), self.max_tokens), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, report in enumerate(reports):
            if not is_missing(report):
                # One by one: in batches the package starts threads, which do not survive a fork.
                encoded = self._tokenizer.encode(str(report)[:MAX_CHARACTERS])
                ids[row], mask[row] = encoded.ids, encoded.attention_mask
        return Tokens(ids, mask)

    def write(self, path: Path) -> None:
        """Write the file that ``of`` reads."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.document.encode())

    @property
    def vocabulary(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def sha256(self) -> str:
        """Of the file, 64 hex."""
        return hashlib.sha256(self.document.encode()).hexdigest()


def is_missing(report: str | None) -> bool:
    return report is None or not report.strip()


# -- making one ----------------------------------------------------------------------------------


def learn_tokenizer(reports: Sequence[str | None], *, vocabulary: int, max_tokens: int) -> Tokenizer:
    """A lower-casing WordPiece tokenizer with at most ``vocabulary`` pieces learned from ``reports``.

    Give it training reports only: a word of the test rows would be knowledge of them. The same reports, in any order,
    give the same file.
    """
    words = _words(reports)
    pieces = learn_vocabulary(words, vocabulary)
    return word_piece({piece: number for number, piece in enumerate(pieces)}, lower=True, max_tokens=max_tokens)


def word_piece(vocabulary: dict[str, int], *, lower: bool, max_tokens: int) -> Tokenizer:
    """BERT's tokenizer over a vocabulary (Devlin et al. 2019, arXiv 1810.04805)."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors

    made = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    made.normalizer = _normalizer(lower)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(name, vocabulary[name]) for name in (START, END)]
    )
    return bounded(made, max_tokens=max_tokens, pad=vocabulary[PAD])


def bounded(made: tokenizers.Tokenizer, *, max_tokens: int, pad: int) -> Tokenizer:
    """A tokenizer whose rows all have ``max_tokens``: longer reports lose their end."""
    made.enable_truncation(max_length=max_tokens)
    made.enable_padding(length=max_tokens, pad_id=pad, pad_token=made.id_to_token(pad) or PAD)
    return Tokenizer(made.to_str())


def _words(reports: Sequence[str | None]) -> Counter[str]:
    from tokenizers import pre_tokenizers

    normalizer, splitter = _normalizer(lower=True), pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for report in reports:
        if not is_missing(report):
            text = normalizer.normalize_str(str(report)[:MAX_CHARACTERS])
            words.update(word for word, _ in splitter.pre_tokenize_str(text))
    return words


def _normalizer(lower: bool) -> tokenizers.normalizers.Normalizer:
    from tokenizers import normalizers

    return normalizers.BertNormalizer(lowercase=lower)

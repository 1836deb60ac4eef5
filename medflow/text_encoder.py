"""Which encoder reads the reports, with what vocabulary, and from where: settled before a network is built.

Whether a pretrained encoder is within reach is not asked here: ``medflow.substitute`` settles it before a run.
Only safetensors is read: many text encoders of the hub lie there as pickles too, which run code when opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from medflow import hub
from medflow.config.sections import ImageTextModel, TextEncoder
from medflow.config.sections.text import SMALL
from medflow.errors import DataError, ModelError
from medflow.models import Network
from medflow.records import Manifest, TextReading
from medflow.substitute import is_here, unreachable
from medflow.text import Tokenizer, bounded, learn_tokenizer, word_piece
from medflow.wordpiece import PAD

TOKENIZER, VOCABULARY = "tokenizer.json", "vocab.txt"
#: Of a hub's configuration: what says nothing about the architecture.
BESIDE = ("architectures", "_name_or_path", "transformers_version", "torch_dtype", "dtype")
LEAKS = (
    "reads reports: they may name the very finding that is asked for, so judge it beside the same model without them"
)


@dataclass(frozen=True)
class Prepared:
    """All that a network needs to read reports."""

    reading: TextReading
    tokenizer: Tokenizer
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """Pretrained, by the encoder's own names; empty for a random encoder."""

    def weights_from(self) -> str:
        """For the card's ``weights_from``."""
        reading = self.reading
        if reading.pretrained:
            return f"text: {reading.origin}"
        instead = f", in place of {reading.instead_of}, which could not be reached" if reading.instead_of else ""
        return f"text: small encoder, random{instead}"

    def notes(self) -> tuple[str, ...]:
        """For the card: what a reader must not miss."""
        reading = self.reading
        if reading.pretrained:
            return (LEAKS,)
        instead = f" in place of {reading.instead_of}, which could not be reached," if reading.instead_of else ""
        learned = f"{reading.vocabulary:,} word pieces learned from {reading.reports:,} training reports"
        return (f"text encoder: a small one{instead} with random weights to start from, {learned}", LEAKS)


# -- before a network ----------------------------------------------------------------------------


def prepare(model: ImageTextModel, rows: Manifest, folder: Path | None = None) -> Prepared:
    """Encoder and tokenizer of a model; a vocabulary is learned from ``rows``, the training rows, alone.

    ``folder`` is what ``text.encoder`` names, on this machine, where it names a folder.
    Raises DataError where no row has a report, WeightsUnavailable and ModelError where an encoder cannot be had.
    """
    reports = rows.reports()
    count = sum(1 for report in reports if report and report.strip())
    if not count:
        raise DataError(
            f"no training row of {rows.card.name} has a report ({len(rows)} rows), and model {model.key!r} reads them",
            hint="use a dataset with reports, or a model of `kind: timm`",
        )
    if model.text.encoder == SMALL:
        return _small(model.text, reports, count)
    return _pretrained(model.text, folder, count)


def fill(network: Network, prepared: Prepared) -> None:
    """Load the pretrained weights into the network's text encoder; nothing for a random one."""
    if prepared.reading.pretrained:
        network.neck.get_submodule("encoder").load_state_dict(prepared.weights)


def _small(text: TextEncoder, reports: tuple[str | None, ...], count: int) -> Prepared:
    tokenizer = learn_tokenizer(reports, vocabulary=text.vocabulary, max_tokens=text.max_tokens)
    encoder = {
        "model_type": "bert",
        "vocab_size": tokenizer.vocabulary,
        "hidden_size": text.width,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "intermediate_size": 2 * text.width,
        "max_position_embeddings": text.max_tokens,
        "pad_token_id": 0,
    }
    return Prepared(_reading(encoder, "random", text, tokenizer, count), tokenizer)


def _pretrained(text: TextEncoder, folder: Path | None, count: int) -> Prepared:
    given = _given(text.encoder, folder)
    longest = int(getattr(given.config, "max_position_embeddings", text.max_tokens))
    if text.max_tokens > longest:
        raise ModelError(
            f"text.max_tokens is {text.max_tokens}, and {text.encoder} reads {longest}",
            hint=f"set model.text.max_tokens={longest} or less",
        )
    weights = {name: value for name, value in given.state_dict().items() if not name.startswith("pooler.")}
    settings = {name: value for name, value in given.config.to_diff_dict().items() if name not in BESIDE}
    tokenizer = _tokenizer(text.encoder, folder, text.max_tokens)
    name = text.encoder if folder is None else PurePosixPath(text.encoder).name
    origin = f"{name}, sha256:{_digest(weights)}"
    return Prepared(_reading(settings, origin, text, tokenizer, count), tokenizer, weights)


def _reading(
    encoder: Mapping[str, Any], origin: str, text: TextEncoder, tokenizer: Tokenizer, count: int
) -> TextReading:
    return TextReading(
        encoder=encoder,
        origin=origin,
        pretrained=text.encoder != SMALL,
        instead_of=text.instead_of,
        max_tokens=text.max_tokens,
        vocabulary=tokenizer.vocabulary,
        tokenizer_sha256=tokenizer.sha256(),
        reports=count,
    )


# -- a pretrained encoder ------------------------------------------------------------------------


def _given(encoder: str, folder: Path | None) -> Any:
    """The encoder as transformers reads it, from safetensors alone and running no code that came with it."""
    from transformers import AutoModel

    try:
        given, told = AutoModel.from_pretrained(
            folder or encoder,
            use_safetensors=True,
            local_files_only=is_here(encoder),
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise unreachable(encoder, str(error).splitlines()[0]) from error
    missing = [name for name in told["missing_keys"] if not name.startswith("pooler.")]
    if missing:
        raise ModelError(
            f"the text encoder {encoder!r} lacks {len(missing)} of its weights, for example {sorted(missing)[0]!r}",
            hint="name a whole encoder, as transformers' save_pretrained writes it",
        )
    return given


def _file(encoder: str, folder: Path | None, name: str) -> Path | None:
    if folder is not None:
        return folder / name if (folder / name).is_file() else None
    try:
        return hub.fetch(encoder, name)
    except OSError:
        return None


def _tokenizer(encoder: str, folder: Path | None, max_tokens: int) -> Tokenizer:
    import tokenizers

    whole = _file(encoder, folder, TOKENIZER)
    if whole is not None:
        made = tokenizers.Tokenizer.from_file(str(whole))
        pad = made.token_to_id(PAD)
        return bounded(made, max_tokens=max_tokens, pad=pad if pad is not None else 0)
    pieces = _file(encoder, folder, VOCABULARY)
    if pieces is None:
        raise unreachable(encoder, f"it has no tokenizer, expected {TOKENIZER} or BERT's {VOCABULARY}")
    lines = pieces.read_text(encoding="utf-8").splitlines()
    vocabulary = {piece: number for number, piece in enumerate(lines)}
    # BioBERT's vocabulary is cased, and no file beside it says so. Capitals among its pieces do.
    cased = any(piece != piece.lower() for piece in lines if not piece.startswith("["))
    return word_piece(vocabulary, lower=not cased, max_tokens=max_tokens)


def _digest(weights: Mapping[str, Tensor]) -> str:
    state = hashlib.sha256()
    for name in sorted(weights):
        state.update(name.encode())
        state.update(weights[name].contiguous().numpy().tobytes())
    return state.hexdigest()

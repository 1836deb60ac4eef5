"""A torch bundle as an ONNX graph that takes the stored uint8 pixels and normalizes inside.

Input ``images`` uint8 (n, height, width, channels), n free; outputs are float32 logits, named by head. A model that
reads reports takes ``input_ids`` and ``attention_mask`` too, int64 (n, max_tokens), as its tokenizer.json gives them.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import onnx
import torch
from onnx import version_converter
from torch import Tensor, nn

from medflow import models
from medflow.bundle import finish
from medflow.config.sections import ExportConfig
from medflow.errors import ModelError
from medflow.graph import INPUT, Graph
from medflow.parity import measure
from medflow.progress import say
from medflow.records import Bundle, Manifest, ModelCard, Parity, Pixels, content
from medflow.scoring import open_scorer
from medflow.text import ATTENTION_MASK, INPUT_IDS

VARIANTS = {"torch": "onnx", "pruned": "pruned_onnx"}
METADATA = "medflow"
#: The newest that torch's TorchScript exporter writes. It takes 2 s where the dynamo one takes 15 to 34.
NEWEST_OPSET = 20


def export_onnx(bundle: Bundle, val: Manifest, pixels: Pixels, config: ExportConfig, *, work: Path) -> Bundle:
    """The bundle as ONNX, below ``work``. Its card states the parity with the torch bundle on validation rows.

    Raises ModelError where the network cannot be exported, the graph is not valid, or its probabilities differ
    from torch's by more than ``config.tolerance``.
    """
    if bundle.is_onnx:
        raise ModelError(f"{bundle.card.name} ({bundle.card.variant}) is ONNX already", hint="export a torch bundle")
    card = bundle.card.model_copy(update={"variant": VARIANTS[bundle.card.variant]})
    draft = Bundle(root=work / "export", card=card)
    draft.root.mkdir(parents=True, exist_ok=True)
    bundle.share_with(draft.root)
    write_graph(models.load(bundle), card, draft.weights, opset=config.opset)
    parity = measure(open_scorer(bundle, device="cpu"), Graph(draft), bundle.card, val, pixels)
    _refuse(parity, card, config.tolerance)
    say(f"exported {card.name}: probabilities within {parity.max_abs_difference:.1e} of torch")
    return finish(work / card.variant, card.model_copy(update={"parity": parity}), draft.weights, val, pixels)


def write_graph(network: models.Network, card: ModelCard, path: Path, *, opset: int) -> None:
    """Trace ``network`` to ``path`` and check what was written. Raises ModelError."""
    names = [head.name for head in card.heads]
    try:
        _trace(_Outputs(network.cpu().eval(), names), card, path, min(opset, NEWEST_OPSET))
        graph = onnx.load(path)
        if opset > NEWEST_OPSET:
            graph = version_converter.convert_version(graph, opset)
        onnx.helper.set_model_props(graph, {METADATA: json.dumps(essentials(card), sort_keys=True)})
        onnx.checker.check_model(graph, full_check=True)
        onnx.save(graph, path)
    except Exception as error:  # the exporter, the converter and the checker each raise their own
        raise ModelError(
            f"{card.name} cannot be exported to ONNX opset {opset}: {_first_line(error)}",
            hint="try `export.opset=17`, or another model",
        ) from error


def essentials(card: ModelCard) -> dict[str, object]:
    """What a user of the bare .onnx file must know to feed it and to read its outputs, as JSON types."""
    return {
        "name": card.name,
        "dataset": card.dataset.name,
        "heads": content(card.heads),
        "preprocess": content(card.preprocess),
        "normalization": "inside the graph",
        "outputs": "logits",
        "model": content(card.model),
        "text": None if card.text is None else content(card.text),
        "weights_from": card.weights_from,
        "data_digest": card.data_digest,
    }


class _Outputs(nn.Module):
    """A network whose outputs are a tuple in head order, as the exporter names them."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.network = network
        self.names = names

    def forward(self, images: Tensor, *tokens: Tensor) -> tuple[Tensor, ...]:
        logits = self.network(images, *tokens)
        return tuple(logits[name] for name in self.names)


def _trace(network: _Outputs, card: ModelCard, path: Path, opset: int) -> None:
    spec = card.preprocess.pixels
    # Two images: with one, a squeezed batch axis would be traced as a constant.
    example = [torch.zeros((2, spec.height, spec.width, spec.channels), dtype=torch.uint8)]
    names = [INPUT]
    if card.text is not None:
        names += [INPUT_IDS, ATTENTION_MASK]
        example += [torch.ones((2, card.text.max_tokens), dtype=torch.int64)] * 2
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            tuple(example),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=names,
            output_names=network.names,
            dynamic_axes={name: {0: "n"} for name in (*names, *network.names)},
        )


def _refuse(parity: Parity, card: ModelCard, tolerance: float) -> None:
    if not parity.max_abs_difference <= tolerance:
        raise ModelError(
            f"the exported {card.name} differs from torch by {parity.max_abs_difference:.2g} in probability, "
            f"allowed {tolerance:g} (decisions agree on {parity.decisions_agree:.1%} of {parity.images} images)",
            hint="try another `export.opset`; raise `export.tolerance` only if you know why they differ",
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

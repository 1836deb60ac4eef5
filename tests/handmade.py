"""A small ONNX bundle made by hand, whose right answers are known without running it.

``diagnosis`` is ``dark`` or ``bright`` by the mean gray value against 128; ``lung`` marks the pixels above 128.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save_file

from medflow.records import (
    Bundle,
    DatasetCard,
    Evaluation,
    HeadSpec,
    ModelCard,
    PixelSpec,
    Preprocess,
    Score,
    Temperature,
    Threshold,
    file_digest,
)

SIZE = 32
DIAGNOSIS = HeadSpec(kind="exclusive", name="diagnosis", labels=("dark", "bright"))
LUNG = HeadSpec(kind="mask", name="lung", labels=("lung",))
DATASET = DatasetCard(
    name="handmade", title="Gray squares", heads=(DIAGNOSIS, LUNG), channels=1, grouped_by="near-duplicates"
)


def logits(images: np.ndarray) -> dict[str, np.ndarray]:
    """What the graph computes, in numpy: (mean - 128) / 8 for ``bright``, its negative for ``dark``."""
    gray = images[..., 0].astype(np.float32)
    bright = (gray.mean(axis=(1, 2)) - 128) / 8
    return {
        "diagnosis": np.stack([-bright, bright], axis=1).astype(np.float32),
        "lung": ((gray - 128) / 8)[:, None].astype(np.float32),
    }


def graph() -> onnx.ModelProto:
    def constant(name: str, value: np.ndarray | float) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(value), name)

    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["nchw", "half"], ["centred"]),
        helper.make_node("Div", ["centred", "eight"], ["lung"]),
        helper.make_node("ReduceMean", ["lung"], ["bright"], axes=[2, 3], keepdims=0),
        helper.make_node("Neg", ["bright"], ["dark"]),
        helper.make_node("Concat", ["dark", "bright"], ["diagnosis"], axis=1),
    ]
    made = helper.make_graph(
        nodes,
        "handmade",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", SIZE, SIZE, 1])],
        [
            helper.make_tensor_value_info("diagnosis", TensorProto.FLOAT, ["n", 2]),
            helper.make_tensor_value_info("lung", TensorProto.FLOAT, ["n", 1, SIZE, SIZE]),
        ],
        [constant("half", np.float32(128)), constant("eight", np.float32(8))],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def bundle(root: Path, *, golden_error: float = 0.0) -> Bundle:
    """A bundle in ``root``; ``golden_error`` is added to the golden set's logits."""
    root.mkdir(parents=True)
    onnx.save(graph(), root / Bundle.ONNX)
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 1), dtype=np.uint8)
    expected = logits(images)
    expected["diagnosis"][:, 0] += np.float32(golden_error)
    save_file({"image": images, **expected}, root / Bundle.GOLDEN)
    return Bundle(root=root, card=_card(root)).write_card()


def evaluation(made: Bundle) -> Evaluation:
    score = Score(head="diagnosis", label="macro", metric="auroc", value=0.9, low=0.85, high=0.95, n=40)
    return Evaluation(
        bundle_digest=made.digest(), rows_digest="rows", model="handmade", variant="onnx", role="test", scores=(score,)
    )


def image_file(gray: int, *, size: tuple[int, int] = (64, 48), kind: str = "PNG") -> bytes:
    """An image file of one gray value."""
    stream = io.BytesIO()
    Image.new("L", size, gray).save(stream, kind)
    return stream.getvalue()


def _card(root: Path) -> ModelCard:
    path = root / Bundle.ONNX
    return ModelCard(
        name="handmade/threshold",
        variant="onnx",
        dataset=DATASET,
        heads=DATASET.heads,
        preprocess=Preprocess(pixels=PixelSpec(height=SIZE, width=SIZE, channels=1), mean=(0.0,), std=(1.0,)),
        model={},
        weights_from="none",
        thresholds=(Threshold(head="lung", label="lung", value=0.5, rule="dice"),),
        temperatures=(Temperature(head="diagnosis", value=2.0),),
        data_digest="data",
        weights_digest=file_digest(path),
        bytes=path.stat().st_size,
        parameters=2,
    )

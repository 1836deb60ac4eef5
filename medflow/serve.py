"""The service inside a Bento: ``POST /predict`` and the facts about its model. onnxruntime, no torch.

``medflow.door`` turns uploads into pixels or refuses them; the pixels of several requests are then scored
together by BentoML's adaptive batching. Routes: ``/predict``, ``/model/info``, ``/livez``, ``/readyz`` (ready once
the bundle's golden set is reproduced, or 503 and why not) and ``/metrics``. Preprocessing and decisions are the
very functions that training and evaluation use.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import bentoml
import numpy as np
from _bentoml_sdk.io_models import IODescriptor
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from medflow import __version__
from medflow.allocator import give_back_large_blocks
from medflow.decisions import decide, probabilities, threshold_values
from medflow.door import ASKED, MAX_IN_FLIGHT, PREDICT, READY, Asked, Door, Refused
from medflow.errors import ArtifactError, MedflowError
from medflow.graph import Graph, check_golden
from medflow.masks import draw_mask
from medflow.records import Bundle, HeadSpec, PixelSpec, Record

BUNDLE = "bundle"
IDENTITY = "identity.json"
INFO = "/model/info"
#: Everything else is answered 404 before BentoML counts it: its metrics keep a series for each path ever asked for.
ROUTES = frozenset({PREDICT, READY, INFO, "/livez", "/healthz", "/metrics", "/", "/docs.json", "/schema.json"})
STATIC = "/static_content/"
MAX_BATCH = 8

log = logging.getLogger("bentoml.medflow")


class Identity(Record):
    """Which package this is; lies beside ``service.py`` as ``identity.json``."""

    name: str
    version: str
    """First 12 of ``content_digest``: the version in the Bento's tag."""
    content_digest: str
    bundle_digest: str


class ModelRef(BaseModel):
    """Which model answered."""

    name: str
    version: str
    variant: str
    digest: str
    """Of the bundle."""


class MaskAnswer(BaseModel):
    label: str
    png: str
    """Base64 of a PNG, 8-bit gray, 0 or 255, of the size of the image that was sent, upright as its EXIF says."""
    width: int
    height: int
    fraction: float
    """Share of the image's pixels that are set, 0 to 1."""
    threshold: float


class Answer(BaseModel):
    """What ``POST /predict`` returns."""

    model: ModelRef
    head: str | None
    classes: list[str]
    probabilities: dict[str, float]
    """By class, 0 to 1, after temperature. They add up to 1 where classes exclude each other."""
    decision: str | list[str] | None
    """The class; or every label at or above its threshold; None where the model gives a mask alone."""
    mask: MaskAnswer | None
    report_read: bool | None = None
    """Whether a report in the field ``text`` was read; None where the model reads none."""


class Model:
    """The packaged model. Its card is read at once, its graph by ``open``, when the service starts."""

    def __init__(self, root: Path) -> None:
        self.bundle = Bundle.open(root / BUNDLE)
        self.card = self.bundle.card
        self.identity = Identity.model_validate_json((root / IDENTITY).read_text())
        self.refusal: Refused | None = Refused(503, "not ready: the model is loading", hint="wait")
        self._graph: Graph | None = None

    @property
    def pixels(self) -> PixelSpec:
        return self.card.preprocess.pixels

    @property
    def reads_reports(self) -> bool:
        return self.card.text is not None

    def open(self) -> None:
        """Load the graph and check it. What goes wrong becomes ``refusal``: the service stays up to say it."""
        try:
            graph = Graph(self.bundle)
            check_golden(self.bundle, graph)
        except MedflowError as error:
            log.error("not ready: %s", error.message)
            self.refusal = Refused(503, f"not ready: {error.message}", hint=error.hint)
        else:
            self._graph, self.refusal = graph, None

    def answers(self, asked: Sequence[Asked]) -> list[Answer]:
        """One answer a question."""
        if self._graph is None:
            raise ArtifactError("the model is not loaded", hint="ask /readyz why")
        logits = self._graph(np.stack([item.image.pixels for item in asked]), [item.report for item in asked])
        scores = probabilities(logits, self.card.heads, self.card.temperatures)
        decisions = decide(scores, self.card.heads, self.card.thresholds)
        return [self._answer(_row(scores, row), _row(decisions, row), item) for row, item in enumerate(asked)]

    def _answer(self, scores: Mapping[str, np.ndarray], decisions: Mapping[str, np.ndarray], asked: Asked) -> Answer:
        labels = next((head for head in self.card.heads if head.kind != "mask"), None)
        mask = next((head for head in self.card.heads if head.kind == "mask"), None)
        return Answer(
            model=self.reference(),
            head=labels.name if labels else None,
            classes=list(labels.labels) if labels else [],
            probabilities=dict(zip(labels.labels, scores[labels.name].tolist(), strict=True)) if labels else {},
            decision=decision_text(labels, decisions[labels.name]) if labels else None,
            mask=self._mask(mask, scores[mask.name][0], asked.image.size) if mask else None,
            report_read=asked.report is not None if self.reads_reports else None,
        )

    def _mask(self, head: HeadSpec, scores: np.ndarray, size: tuple[int, int]) -> MaskAnswer:
        cut = float(threshold_values(head, self.card.thresholds)[0])
        drawn = draw_mask(scores, cut, self.pixels, size)
        return MaskAnswer(
            label=head.labels[0],
            png=base64.b64encode(drawn.png).decode(),
            width=size[0],
            height=size[1],
            fraction=drawn.fraction,
            threshold=cut,
        )

    def reference(self) -> ModelRef:
        card, identity = self.card, self.identity
        return ModelRef(name=card.name, version=identity.version, variant=card.variant, digest=identity.bundle_digest)

    def info(self) -> dict[str, Any]:
        """The card's facts as JSON types, without the log of the training."""
        identity = self.identity
        return {
            **self.reference().model_dump(),
            "package": {"tag": f"{identity.name}:{identity.version}", "digest": identity.content_digest},
            "medflow": __version__,
            "card": self.card.model_dump(mode="json", exclude={"training", "training_config", "pruned"}),
        }

    def max_latency_ms(self) -> int:
        """How long a request may wait: twice what a full house takes one by one, so that the door sheds first."""
        return int(min(30_000, max(2_000, 2 * MAX_IN_FLIGHT * (self.card.latency_ms or 0))))


def decision_text(head: HeadSpec, decided: np.ndarray) -> str | list[str]:
    """One image's decision by ``decisions.decide``, in labels. Not for mask heads."""
    if head.kind == "exclusive":
        return head.labels[int(decided)]
    return [label for label, yes in zip(head.labels, decided, strict=True) if yes]


def _row(arrays: Mapping[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    return {name: values[row] for name, values in arrays.items()}


# -- BentoML -------------------------------------------------------------------------------------


class Upload(IODescriptor):
    """BentoML's input: what the door left in the scope. Documents the request for OpenAPI."""

    image: Path
    text: str | None = None
    """The image's report, for a model that reads reports."""

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> list[Asked]:
        return request.scope[ASKED]


class Result(IODescriptor, Answer):
    """BentoML's output: one answer of a batch."""

    @classmethod
    async def to_http_response(cls, obj: list[Answer], serde: object) -> Response:
        return Response(obj[0].model_dump_json(), media_type="application/json")


# BentoML hands a root input to the method as it is, instead of taking it apart by field.
Upload.__root_input__ = True


class KnownPaths(bentoml.Service):
    """A service whose application answers 404 itself for paths that it does not have."""

    def to_asgi(self, is_main: bool = True):
        app = super().to_asgi(is_main=is_main)

        async def known(scope, receive, send) -> None:
            if scope["type"] == "http" and scope["path"] not in ROUTES and not scope["path"].startswith(STATIC):
                missing = {"error": "there is nothing at this path", "hint": f"POST {PREDICT}, GET {INFO} or /readyz"}
                return await JSONResponse(missing, 404)(scope, receive, send)
            await app(scope, receive, send)

        return known


def service(root: Path) -> bentoml.Service:
    """The BentoML service of a staged package: ``root`` holds ``identity.json`` and ``bundle/``."""
    give_back_large_blocks()
    model = Model(root)

    @bentoml.service(
        name=model.identity.name,
        service_class=KnownPaths,
        workers=1,
        http={"host": "127.0.0.1"},
        logging={"access": {"enabled": False}},  # the door logs, without the names that paths may hold
    )
    @bentoml.asgi_app(Starlette(routes=[Route(INFO, lambda request: JSONResponse(model.info()))]))
    class Medflow:
        """A medflow model. Not a medical device."""

        def __init__(self) -> None:
            model.open()

        def __is_ready__(self) -> bool:
            return model.refusal is None

        @bentoml.api(
            batchable=True,
            max_batch_size=MAX_BATCH,
            max_latency_ms=model.max_latency_ms(),
            input_spec=Upload,
            output_spec=Result,
        )
        def predict(self, asked: list[Asked]) -> list[Answer]:
            return model.answers(asked)

    served = cast("bentoml.Service[Medflow]", Medflow)  # what the decorator makes of the class
    served.add_asgi_middleware(Door, model=model)
    return served

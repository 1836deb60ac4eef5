"""Verbs about trained models: list, report, predict, promote, serve."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medflow.commands import output
from medflow.commands.place import LOCAL, go
from medflow.commands.verb import At, JsonOption, Model
from medflow.errors import DataError, ServingError

if TYPE_CHECKING:
    from medflow.platform.outcomes import ModelVersion
    from medflow.records import Bundle, Promotion


def models(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only this model.", show_default=False)] = None,
    on: At = LOCAL,
    as_json: JsonOption = False,
) -> None:
    """List model versions: stage, variant, headline metrics.

    \b
    Examples:
      medflow models
      medflow models phantom --json | jq -r '.[0].ref'
    """
    go(on)
    from medflow.platform import registry

    found = registry.versions(name)
    if as_json:
        output.emit_json([{"ref": item.ref, **item.model_dump(mode="json")} for item in found])
        return
    if not found:
        output.emit("no models yet; `medflow demo` makes the first")
        return
    rows = [
        (item.ref, ", ".join(item.stages), item.variant, f"{item.created:%Y-%m-%d %H:%M}", _headline(item))
        for item in found
    ]
    output.emit_table(("model", "stage", "variant", "made (UTC)", "on test rows"), rows)


def _headline(version: ModelVersion) -> str:
    chosen = ("auroc", "balanced_accuracy", "dice")
    scores = [score for score in version.metrics if score.label == "macro" and score.metric in chosen]
    return ", ".join(f"{score.head} {score.metric} {score.value:.3f}" for score in scores)


def report(
    reference: Annotated[str, typer.Argument(metavar="MODEL|RUN", help="A model as `serve` takes it, or a run's id.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pages.")] = Path("report"),
    on: At = LOCAL,
    as_json: JsonOption = False,
) -> None:
    """Write the pages of a model or run, readable offline.

    Data, checks, curves, metrics with intervals, compression, promotion.

    \b
    Examples:
      medflow report phantom
      medflow report production --to report
    """
    go(on)
    from medflow.platform import reports

    path = reports.write(reference, to)
    if as_json:
        output.emit_json({"path": str(path.absolute())})
    else:
        output.emit(f"{path}")


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model as `serve` takes it, or a bundle's folder.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES", help="Image files, or folders of them.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for predictions.csv and overlays.")],
    reports: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Reports: columns image (path or name) and text.")
    ] = None,
    overlays: Annotated[
        bool, typer.Option("--overlays", help="Pictures with class and confidence, also where there is no mask.")
    ] = False,
    samples: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Score only N of the images.", show_default=False)
    ] = None,
    on: At = LOCAL,
    as_json: JsonOption = False,
) -> None:
    """Score image files: a CSV, and overlays of masks with class and confidence.

    The CSV has every class's probability and the decision. Torch and ONNX models give the same.

    \b
    Examples:
      medflow predict phantom scan.png --out predictions
      medflow predict covid_radiography@production scans/*.png --out predictions
      medflow predict chest_xray_pneumonia scans --overlays --samples 12 --out predictions
      medflow predict path/to/bundle scan.png --out predictions
      medflow predict phantom@3 scans --reports reports.csv --out predictions
    """
    go(on)
    with tempfile.TemporaryDirectory(prefix="medflow-predict-") as scratch:
        bundle = bundle_of(model, Path(scratch))
        from medflow.predict import predict as score

        predicted = score(
            bundle, images, out, reports=reports, overlays="all" if overlays else "masks", samples=samples
        )
    if as_json:
        output.emit_json(predicted.model_dump(mode="json"))
    else:
        output.emit(f"{predicted}")
    if predicted.failed:
        raise DataError(
            f"{predicted.failed} of {predicted.images} images could not be read", hint=f"{predicted.table} says why"
        )


def bundle_of(reference: str, scratch: Path) -> Bundle:
    """The bundle in a folder, or a copy in ``scratch`` of that of a model on record."""
    from medflow.records import Bundle

    if Path(reference).is_dir():
        return Bundle.open(Path(reference))
    from medflow.platform import registry

    return registry.bundle(reference, scratch)


def promote(
    model: Model,
    stage: Annotated[str, typer.Option(help="Stage to give: production or staging.")] = "production",
    explain: Annotated[
        bool, typer.Option("--explain", help="Only tell why this model was, or was not, promoted.")
    ] = False,
    on: At = LOCAL,
    as_json: JsonOption = False,
) -> None:
    """Give a stage to a model, or tell why a run did or did not.

    \b
    Examples:
      medflow promote phantom@2 --explain
      medflow promote phantom@2 --stage staging
      medflow promote covid_radiography@staging --stage production
    """
    go(on)
    from medflow.platform import registry

    if explain:
        _explain(model, registry.promotion_of(model), as_json)
        return
    promoted = registry.promote(model, stage)
    if as_json:
        output.emit_json({"ref": promoted.ref, **promoted.model_dump(mode="json")})
    else:
        output.emit(f"{promoted.ref} is in {stage}")


def _explain(model: str, promotion: Promotion, as_json: bool) -> None:
    if as_json:
        output.emit_json(promotion.model_dump(mode="json"))
        return
    output.emit(f"{model}: {'promoted' if promotion.promoted else 'not promoted'} ({promotion.stage})")
    for reason in promotion.reasons:
        output.emit(f"  {reason}")
    if not promotion.comparisons:
        return
    rows = [
        (f"{item.head} {item.label} {item.metric}", f"{item.candidate:.3f}", f"{item.incumbent:.3f}",
         f"{item.difference:+.3f}", f"{item.low:+.3f} to {item.high:+.3f}", f"{item.margin:.3f}", item.n)
        for item in promotion.comparisons
    ]  # fmt: skip
    output.emit()
    output.emit_table(("metric", "candidate", "incumbent", "difference", "interval", "margin", "n"), rows)


def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 3000,
    on: At = LOCAL,
) -> None:
    """Serve a model over HTTP until Ctrl-C.

    POST /predict takes an image in the multipart field `image`, and a report in `text` if the model reads reports.
    GET /model/info, /livez, /readyz, /metrics.

    \b
    Examples:
      medflow serve production
      medflow serve covid_radiography@3 --port 3001
      curl -F image=@scan.png http://127.0.0.1:3000/predict
    """
    go(on)
    from medflow.platform import registry
    from medflow.server import start_server

    found = registry.find(model)
    with tempfile.TemporaryDirectory(prefix="medflow-serve-") as scratch:
        package = registry.package(found.ref, Path(scratch))
        with start_server(package, host=host, port=port) as server:
            output.emit(f"serving {found.ref} ({package.facts.tag}) at {server.url}")
            try:
                code = server.wait()
            except KeyboardInterrupt:
                output.emit("stopped")
                return
            raise ServingError(
                f"the service ended with exit code {code}: {server.last_lines(1)}", hint=f"its log was {server.log}"
            )

"""A chosen ONNX bundle as a Bento: the model, its card as a page, and the few modules that serve it.

The staged folder is all that the service sees::

    service.py  identity.json  README.md  bundle/  medflow/   (the import closure of medflow.serve, no torch)

The tag's version is the first 12 of a digest over the bundle, those sources and the pinned packages, so the
same content has the same tag wherever and whenever it is built.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from medflow.errors import ArtifactError, ModelError, ServingError
from medflow.imports import Sources, distributions, module_digest, ours_anywhere
from medflow.records import Bundle, Evaluation, Package, PackageFacts, digest_of, file_digest

SERVICE = '''"""The service of this Bento. What it does is in medflow/serve.py."""

from pathlib import Path

from medflow.serve import service

Medflow = service(Path(__file__).parent)
'''
# bentoml keeps its home and the modules it imported for the whole process, so a build gets one of its own.
BUILD = """
import sys, bentoml
name, version, target, *packages = sys.argv[1:]
bento = bentoml.bentos.build(
    "service:Medflow", name=name, version=version, build_ctx=".", include=["**"],
    python={"packages": packages, "lock_packages": False},
)
bento.export(target)
"""
BUILD_SECONDS = 300


def package(bundle: Bundle, evaluation: Evaluation, *, work: Path) -> Package:
    """Build the Bento of an ONNX bundle below ``work``. ``evaluation`` goes into the model card's page.

    Raises ModelError for a torch bundle, ServingError where BentoML cannot build it.
    """
    if not bundle.is_onnx:
        raise ModelError(
            f"{bundle.card.name} ({bundle.card.variant}) is a torch bundle, a package needs an ONNX one",
            hint="export it first: `medflow run` does, in its step export_onnx",
        )
    served = Sources().reached(["medflow.serve"], ours_anywhere)
    sources, pins = served.modules, distributions((*served.packages, *_for_reports(bundle)))
    digest = content_digest(bundle, sources, pins)
    name, version = bundle.card.dataset.name, digest[:12]
    stage = _emptied(work / "stage")
    _stage(stage, bundle, evaluation, sources, name=name, digest=digest)
    root = _emptied(work / "package")
    _build(stage, root / f"{name}.bento", name, version, pins, home=work / "bentoml")
    shutil.rmtree(stage)
    shutil.rmtree(work / "bentoml")
    return _finished(root, name, digest, bundle)


def _for_reports(bundle: Bundle) -> tuple[str, ...]:
    """The package that only a model that reads reports needs; it is imported when a tokenizer is opened."""
    return () if bundle.card.text is None else ("tokenizers",)


def content_digest(bundle: Bundle, sources: dict[str, Path], pins: dict[str, str]) -> str:
    """sha256 (64 hex) over what the service does: the bundle, its sources and its packages."""
    files = {name: module_digest(path) for name, path in sources.items()}
    return digest_of({"bundle": bundle.digest(), "service": SERVICE, "sources": files, "packages": pins})


def open_package(root: Path) -> Package:
    """A package folder as ``package`` left it. Raises ArtifactError where it is none."""
    path = root / Package.FACTS
    if not path.is_file():
        raise ArtifactError(f"{root} is no package: it has no {Package.FACTS}", hint="run the step `package` again")
    return Package(root=root, facts=PackageFacts.model_validate_json(path.read_text()))


def _stage(
    stage: Path, bundle: Bundle, evaluation: Evaluation, sources: dict[str, Path], *, name: str, digest: str
) -> None:
    from medflow.serve import BUNDLE, IDENTITY, Identity

    identity = Identity(name=name, version=digest[:12], content_digest=digest, bundle_digest=bundle.digest())
    (stage / IDENTITY).write_text(identity.model_dump_json(indent=1))
    (stage / "service.py").write_text(SERVICE)
    (stage / "README.md").write_text(card_page(bundle, evaluation))
    (stage / BUNDLE).mkdir()
    for path in bundle.files():
        shutil.copy(path, stage / BUNDLE / path.name)
    package_root = sources["medflow"].parent
    for path in sources.values():
        target = stage / "medflow" / path.relative_to(package_root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def _build(stage: Path, target: Path, name: str, version: str, pins: dict[str, str], *, home: Path) -> None:
    environment = {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    environment.pop("PYTHONPATH", None)  # the staged medflow is what must import, and nothing else
    packages = [f"{item}=={pin}" for item, pin in pins.items()]
    command = [sys.executable, "-c", BUILD, name, version, str(target.absolute()), *packages]
    home.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            command, cwd=stage, env=environment, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ServingError(
            f"BentoML did not build {name}:{version} in {BUILD_SECONDS} s", hint="run again on a quieter machine"
        ) from error
    if done.returncode != 0 or not target.is_file():
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise ServingError(f"BentoML could not build {name}:{version}: {last}", hint=f"look into {stage}")


def _finished(root: Path, name: str, digest: str, bundle: Bundle) -> Package:
    path = root / f"{name}.bento"
    facts = PackageFacts(
        tag=f"{name}:{digest[:12]}",
        file=path.name,
        content_digest=digest,
        bundle_digest=bundle.digest(),
        bytes=path.stat().st_size,
        bento_sha256=file_digest(path),
    )
    (root / Package.FACTS).write_text(facts.model_dump_json(indent=1))
    return Package(root=root, facts=facts)


def card_page(bundle: Bundle, evaluation: Evaluation) -> str:
    """The model card as Markdown (after Mitchell et al. 2019, arXiv 1810.03993): what it is, how good, its limits."""
    card = bundle.card
    rows = [
        f"| {score.head} | {score.label} | {score.metric} | {score.value:.3f} | {score.low:.3f} to {score.high:.3f} "
        f"| {score.n} |"
        for score in evaluation.scores
    ]
    spec = card.preprocess.pixels
    lines = [
        f"# {card.name}, {card.variant}",
        "",
        f"{card.dataset.title}. Not a medical device; for research.",
        "",
        *(f"- {head.name} ({head.kind}): {', '.join(head.labels)}" for head in card.heads),
        f"- input: {spec.width} x {spec.height}, {spec.channels} channel(s), {spec.fit}",
        f"- weights: {card.parameters:,} parameters, {card.bytes:,} bytes, initialised from {card.weights_from}",
        f"- data: {card.dataset.kaggle or card.dataset.name}, digest {card.data_digest[:12]}",
        f"- licence of the data: {card.dataset.licence or 'not stated'}",
        f"- limits: {card.dataset.limits or 'none stated'}",
        *(f"- note: {note}" for note in card.notes),
        "",
        f"## On {evaluation.role} rows, {evaluation.confidence:.0%} intervals",
        "",
        "| head | label | metric | value | interval | images |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        card.dataset.citation,
    ]
    return "\n".join(lines).strip() + "\n"


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder

"""The main job, end to end: generated images to a promoted model that answers over HTTP."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.request import Request, urlopen
from uuid import uuid4

from medflow import datasets, twins
from medflow.config.reading import load
from medflow.platform import registry, runs
from medflow.platform.outcomes import DemoOutcome
from medflow.records import Generated
from medflow.server import start_server

DATASET = datasets.DEMONSTRATION
ANSWER_SECONDS = 30.0


def demo(say: Callable[[str], None]) -> DemoOutcome:
    """Run the phantom pipeline, serve what is in production, ask it once."""
    run = runs.run(load(DATASET), say=say)
    model = registry.find(f"{DATASET}@production")
    say(f"serve {model.ref}")
    with tempfile.TemporaryDirectory(prefix="medflow-") as folder:
        package = registry.package(model.ref, Path(folder) / "package")
        image = _image(Path(folder) / "twin")
        with start_server(package) as server:
            answer = ask(server.url, image)
    return DemoOutcome(run=run, served=model.ref, answer=answer, commands=_commands(model.ref))


def ask(url: str, image: Path) -> str:
    """POST one image to a running service; its JSON without the mask's pixels, which are long."""
    boundary = uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n\r\n'
    body = head.encode() + image.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    with urlopen(Request(f"{url}/predict", data=body, headers=headers), timeout=ANSWER_SECONDS) as response:
        answer = json.loads(response.read())
    return json.dumps({key: _short(value) for key, value in answer.items()}, indent=1)


def _short(value: object) -> object:
    if isinstance(value, str) and len(value) > 200:
        return f"{value[:40]}… ({len(value)} characters)"
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return value


def _image(folder: Path) -> Path:
    """An image that no part of the run has seen: of another seed."""
    twins.write_twin(DATASET, folder, Generated(images=24, seed=20_000))
    return min(path for path in folder.rglob("*") if path.parent.name == "images")


def _commands(reference: str) -> tuple[str, ...]:
    return (
        ".venv/bin/medflow dashboard",
        f".venv/bin/medflow serve {reference}",
        f".venv/bin/medflow report {reference}",
        f".venv/bin/medflow promote {reference} --explain",
        ".venv/bin/medflow datasets",
    )

"""infra/docker: what the images are made of agrees with the code. Built and run: tests/kubernetes/test_images.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medflow.imports import Sources, distributions, ours_anywhere
from medflow.platform import environment

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "infra" / "docker"
DOCKERFILES = sorted(DOCKER.glob("*/Dockerfile"))
STEP = (DOCKER / "step" / "Dockerfile").read_text()


def _environment(text: str) -> dict[str, str]:
    lines = re.findall(r"^(?:ENV|   ) +(\w+=\S+)", text, re.MULTILINE)
    return dict(line.split("=", 1) for line in lines)


def _lines(name: str) -> set[str]:
    lines = (DOCKER / name / "requirements.in").read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def test_a_step_starts_with_the_settings_that_medflow_makes() -> None:
    given = _environment(STEP)
    made = environment._settings(Path(given["MEDFLOW_HOME"]))
    # ZenML's entrypoint is imported before medflow: what it reads must be there already.
    missing = {name: value for name, value in made.items() if given.get(name) != value}
    assert missing in ({}, {"ZENML_AUTO_OPEN_DASHBOARD": "false"})


def test_the_service_has_what_it_imports_and_no_torch() -> None:
    imported = Sources().reached(["medflow.serve"], ours_anywhere).packages
    wanted = {name.lower().replace("_", "-") for name in distributions(imported)}
    assert wanted <= _lines("serving")
    assert _lines("serving") - wanted == {"tokenizers", "boto3"}


def test_torch_comes_before_and_without_the_rest() -> None:
    order = [STEP.index(each) for each in ("-r /lists/cuda.lock", "-r /lists/all.lock", "COPY medflow")]
    assert order == sorted(order)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_every_image_runs_as_nobody_special(path: Path) -> None:
    text = path.read_text()
    assert path.parent.name == "base" or "\nUSER 1000:1000\n" in text
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE)[-1] in ("python:3.11-slim", "medflow-base")


def test_the_context_has_only_what_is_copied() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / each).exists() for each in let_in)
    copied = {
        word.rstrip("/")
        for path in DOCKERFILES
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", path.read_text(), re.MULTILINE)
        for word in line.split()
    }
    assert {each for each in copied if not each.startswith("infra/docker/")} == let_in - {"infra/docker"}

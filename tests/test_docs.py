"""README.md tells the truth: its commands parse, its files are there, its list of verbs is the list of verbs."""

from __future__ import annotations

import os
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from medflow import cli, datasets, serve
from medflow.config.reading import load

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROSE = BLOCK.sub("", README)
INLINE = re.findall(r"`([^`\n]+)`", PROSE)
#: Words in capitals stand for something of the reader's own.
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b|\.\.\.")
CHEAP = {"datasets", "show", "phantom"}
#: What `medflow new`, `show` and `tune` make for the reader in the examples.
OWN = frozenset({"mine", "tuned_phantom"})
#: The dataset of each published system, by the number of its heading.
SYSTEMS = {
    "1": "covid_radiography",
    "2": "chest_xray_pneumonia",
    "3": "lung_disease",
    "4": "ham10000",
    "5": "nih_chestxray14",
}


def commands() -> Iterator[list[str]]:
    """Every line of the shell blocks, as words."""
    for language, text in BLOCK.findall(README):
        if language == "sh":
            yield from (words for line in text.splitlines() if (words := shlex.split(line, comments=True)))


def of_medflow() -> list[list[str]]:
    return [words[1:] for words in commands() if words[0] == ".venv/bin/medflow"]


def examples() -> list[list[str]]:
    """The examples in the help of every verb, up to a pipe."""
    lines = [line.strip() for verb in cli.VERBS.values() for line in (verb.__doc__ or "").splitlines()]
    return [
        shlex.split(part.strip())[1:] for line in lines for part in _up_to_pipe(line).split(";") if _is_example(part)
    ]


def _up_to_pipe(line: str) -> str:
    return re.split(r" [|>] ", line)[0]


def _is_example(line: str) -> bool:
    return line.strip().startswith("medflow ")


def parsed(words: list[str]) -> typer.Context:
    """Arguments and options as the real parser understands them. Raises where it does not."""
    group = typer.main.get_group(cli.app)
    command = group.commands[words[0]]
    return command.make_context(words[0], words[1:])


def test_the_readme_has_commands() -> None:
    assert {words[0] for words in commands()} <= {
        "make",
        ".venv/bin/medflow",
        "curl",
        "time",
        "export",
        "sed",
        "printf",
    }
    assert len(of_medflow()) >= 3 and len(examples()) > 20


@pytest.mark.parametrize("words", [*of_medflow(), *examples()], ids=" ".join)
def test_a_command_parses_and_its_settings_are_known(words: list[str]) -> None:
    found = parsed(words).params
    if words[0] in ("run", "show") and words[1].removesuffix(".yaml") not in OWN:
        assert load(found["dataset"], found["settings"] or ()).dataset


def test_a_command_that_is_wrong_would_be_seen() -> None:
    for words in (["run"], ["serve", "x", "--prot", "3"], ["phantom", "x", "--to", "y", "--images", "many"]):
        with pytest.raises(typer.TyperException):
            parsed(words)
    with pytest.raises(KeyError):
        parsed(["trian"])


@pytest.mark.parametrize("words", [words for words in examples() if words[0] in CHEAP], ids=" ".join)
def test_a_cheap_command_runs(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(words) == 0
    assert capfd.readouterr().out


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    [code] = [text for language, text in BLOCK.findall(README) if language == "python"]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    parameters, best, score = capsys.readouterr().out.splitlines()
    assert int(parameters) == names["bundle"].card.parameters > 1000
    assert float(best) == names["bundle"].card.training.best_score and "metric='auroc'" in score


def test_make_targets_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {words[1] for words in commands() if words[0] == "make"}
    asked |= {target for text in INLINE for target in re.findall(r"\bmake ([a-z-]+)", text)}
    assert asked >= {"demo", "test"} and asked <= targets


def test_files_and_folders_are_there() -> None:
    named = {text for text in INLINE if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", text) and ("/" in text or "." in text)}
    theirs = {datasets.get(name).card.kaggle for name in datasets.names()} | {f"{name}.yaml" for name in OWN}
    in_python = {name for name in named if re.fullmatch(r"medflow(\.\w+)+", name)}
    assert {"medflow.models.build", "medflow.train.train"} <= in_python
    assert all(callable(pkgutil.resolve_name(name)) for name in in_python)
    ours = {name for name in named - theirs - in_python if not PLACEHOLDER.search(name) and not name.startswith(".")}
    assert {"requirements.lock", "medflow/", "pipelines/training.py"} <= ours
    assert not [name for name in sorted(ours) if not (ROOT / name).exists()]


def of_systems() -> list[tuple[str, list[str]]]:
    """Commands and settings in the tables of the published systems, each with the dataset of its heading."""
    found, dataset = [], ""
    for line in PROSE[PROSE.index("### 1. ") :].split("\n## ")[0].splitlines():
        if line.startswith("### "):
            dataset = SYSTEMS[line.removeprefix("### ").partition(".")[0]]
        for code in re.findall(r"`([^`]+)`", line):
            words = shlex.split(code)
            if words[0] == ".venv/bin/medflow" or all("=" in word for word in words):
                found.append((dataset, words))
    return found


@pytest.mark.parametrize(("dataset", "words"), of_systems(), ids=str)
def test_what_the_tables_of_the_systems_say_can_be_typed(dataset: str, words: list[str]) -> None:
    if words[0] != ".venv/bin/medflow":
        assert load(dataset, words).dataset == dataset
        return
    found = parsed(words[1:]).params
    if words[1] in ("run", "show", "tune") and not words[2].startswith("tuned_"):
        assert load(found["dataset"], found["settings"] or ()).dataset


def test_the_list_of_verbs_is_the_list_of_verbs() -> None:
    table = PROSE[PROSE.index("| verb |") :].split("\n\n")[0].splitlines()[2:]
    listed = [code.split()[:2] for row in table for code in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    commands = typer.main.get_group(cli.app).commands
    groups = {name: group.commands for name, group in commands.items() if isinstance(group, TyperGroup)}
    assert sorted(verb for verb, *_ in listed if verb not in groups) == sorted(cli.VERBS)
    parts = [[name, part] for name, group in groups.items() for part in group]
    assert sorted(words for words in listed if words[0] in groups) == sorted(parts)


def test_the_signatures_of_verbs_are_real() -> None:
    """Options that the table shows with a verb are options of that verb."""
    for text in INLINE:
        verb, *rest = text.replace("\\|", "|").replace("medflow ", "", 1).split()
        if verb in cli.VERBS:
            known = {name for item in typer.main.get_group(cli.app).commands[verb].params for name in item.opts}
            assert {word.strip("[]") for word in rest if word.strip("[").startswith("--")} <= known | {
                "--help",
                "--debug",
            }


def test_routes_and_variables_are_real() -> None:
    routes = {text for text in INLINE if re.fullmatch(r"/[a-z]+(/[a-z]+)*", text)}
    assert routes and routes <= serve.ROUTES
    sources = "".join(path.read_text() for path in (ROOT / "medflow").rglob("*.py"))
    assert all(name in sources for name in INLINE if re.fullmatch(r"(MEDFLOW|KAGGLE)_[A-Z_]+", name))
    [curl] = [words for words in commands() if words[0] == "curl"]
    assert curl[-1].endswith(":3000/predict") and curl[2].startswith("image=@")
    assert parsed(["serve", "production"]).params["port"] == 3000


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert all(link.startswith("https://") or (ROOT / link).exists() for link in links)
    assert os.linesep not in "".join(links)

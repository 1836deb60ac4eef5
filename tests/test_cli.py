"""The command line: help as it was agreed, results alone on standard output, errors in two lines, exit codes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from medflow import cli, errors
from medflow.commands import output, running
from medflow.platform.outcomes import RunOutcome, StepOutcome
from medflow.records import Promotion, Score

GOLDEN = Path(__file__).parent / "golden"
HEAVY = {"torch", "zenml", "mlflow", "pandas", "sklearn", "matplotlib", "bentoml", "great_expectations", "numpy"}
TALKS_ONLY = {"", "serve", "dashboard"}
"""What prints addresses and then runs until Ctrl-C; every other verb has a --json."""


def medflow(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medflow.cli", *words]
    environment = {**os.environ, "COLUMNS": "100", "PYTHONPATH": str(GOLDEN.parents[1])}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, timeout=120, check=False
    )


# -- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["", *cli.VERBS])
def test_help_is_as_agreed(verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A new verb or option is a decision: `MEDFLOW_WRITE_GOLDEN=1 pytest tests/test_cli.py` writes it down."""
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.run([verb, "--help"] if verb else ["--help"]) == 0
    text = capsys.readouterr().out
    path = GOLDEN / f"help_{verb or 'medflow'}.txt"
    if os.environ.get("MEDFLOW_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()
    assert "Examples:" in text
    assert ("--json" in text) == (verb not in TALKS_ONLY)


@pytest.mark.parametrize("words", ["schedule", "schedule plan", "schedule apply", "schedule run", "schedule fire"])
def test_help_of_a_group_is_as_agreed(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.run([*words.split(), "--help"]) == 0
    text = capsys.readouterr().out
    path = GOLDEN / f"help_{words.replace(' ', '_')}.txt"
    if os.environ.get("MEDFLOW_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("verb", ["run", "tune"])
@pytest.mark.parametrize("name", ["", "two words", "a/b", "{date}", "-x", "x.", "a" * 81, "phantom", "production"])
def test_what_a_run_cannot_be_called_is_refused_before_anything_is_loaded(verb, name, capsys) -> None:
    assert cli.run([verb, "phantom", "--name", name]) == 2
    said = capsys.readouterr().err
    assert "--name: " in said and repr(name) in said and "for example --name " in said


def test_the_verbs_are_those_of_the_issue() -> None:
    making = "demo datasets new phantom show run runs logs tune compare models"
    using = "report predict evaluate promote serve deploy undeploy deployments dashboard verify doctor"
    assert list(cli.VERBS) == [*making.split(), *using.split()]


def test_every_example_of_a_verb_can_be_parsed() -> None:
    """Each line that starts with `medflow` in a verb's examples names that verb and options that exist."""
    group = typer.main.get_group(cli.app)
    for verb, function in cli.VERBS.items():
        lines = [line.strip() for line in (function.__doc__ or "").splitlines()]
        examples = [line for line in lines if line.startswith(f"medflow {verb}")]
        assert examples, verb
        options = {name for parameter in group.commands[verb].params for name in parameter.opts}
        for example in examples:
            words = example.partition("|")[0].partition(">")[0].partition(";")[0].split()
            assert {word for word in words if word.startswith("--")} <= options, example


def heavy_after(words: list[str]) -> set[str]:
    """Heavy packages that a new process has imported once it ran these words."""
    code = f"import sys; from medflow.cli import run; run({words!r}); print('has:', *sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=GOLDEN.parents[1], check=True)
    return HEAVY & set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("words", ["--help", "run --help", "--version", "demo --nope"])
def test_help_imports_nothing_heavy(words: str) -> None:
    assert heavy_after(words.split()) == set()


@pytest.mark.parametrize("words", ["show phantom", "datasets", "doctor", "run phantom train.epoch=1"])
def test_light_verbs_stay_light(words: str) -> None:
    """What reads settings or looks at the machine needs neither torch nor ZenML."""
    assert heavy_after(words.split()) <= {"numpy"}


def test_help_answers_in_half_a_second() -> None:
    """Of processor time, the least of five: what other programs do meanwhile does not count."""
    took = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert medflow("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took) < 0.5


def test_without_words_it_helps_and_it_knows_its_version() -> None:
    assert medflow().stdout == medflow("--help").stdout
    assert medflow("--version").stdout == "medflow 0.1.0\n"


# -- results -------------------------------------------------------------------------------------

NOISE = """
import os, subprocess, sys
from medflow.commands import output
with output.results():
    print("print")
    sys.stdout.write("write\\n")
    os.write(1, b"descriptor\\n")
    subprocess.run(["echo", "child"])
    output.emit_json({"answer": float("nan")})
print("after")
"""


def test_nothing_but_the_result_reaches_standard_output() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOISE], capture_output=True, text=True, cwd=GOLDEN.parents[1], check=True
    )
    assert json.loads(done.stdout.removesuffix("after\n")) == {"answer": None}
    assert set(done.stderr.split()) == {"print", "write", "descriptor", "child"}


def test_json_of_the_light_verbs_is_json_alone() -> None:
    names = {item["name"] for item in json.loads(medflow("datasets", "--json").stdout)}
    shown = json.loads(medflow("show", "phantom", "--json", "train.epochs=2").stdout)
    assert shown["config"]["dataset"] in names
    assert shown["config"]["train"]["stages"][0]["epochs"] == 2
    assert shown["origins"]["train.stages.0.epochs"].startswith("command line")
    assert {"check", "ok", "found", "remedy", "needed"} == set(json.loads(medflow("doctor", "--json").stdout)[0])


def test_tables_are_plain_columns_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit_table(("name", "n"), [("one [x]", 5), ("another", 12)])
    assert capsys.readouterr().out == "name      n\none [x]   5\nanother  12\n"


def test_options_and_settings_mix_freely() -> None:
    first = medflow("show", "phantom", "--json", "train.epochs=2", "split.seed=4")
    second = medflow("show", "--json", "phantom", "split.seed=4", "train.epochs=2")
    third = medflow("show", "phantom", "split.seed=4", "--json", "train.epochs=2")
    assert first.stdout == second.stdout == third.stdout


def test_source_sets_kind_and_path(tmp_path: Path) -> None:
    folder = tmp_path / "a: folder #1"
    folder.mkdir()
    archive = tmp_path / "x.zip"
    archive.touch()
    for given, kind, path in (
        (str(folder), "folder", str(folder)),
        ("x.zip", "zip", str(archive)),
        ("kaggle", "kaggle", None),
    ):
        done = medflow("show", "phantom", "--json", "--source", given, folder=tmp_path)
        source = json.loads(done.stdout)["config"]["source"]
        assert (source["kind"], source["path"]) == (kind, path)


def test_metadata_sets_a_whole_path(tmp_path: Path) -> None:
    (tmp_path / "a: table #1.csv").touch()
    done = medflow("show", "ham10000", "--json", "--metadata", "a: table #1.csv", folder=tmp_path)
    assert json.loads(done.stdout)["config"]["source"]["metadata"] == str(tmp_path / "a: table #1.csv")


def test_phantom_writes_the_table_apart_where_asked(tmp_path: Path) -> None:
    done = medflow("phantom", "ham10000", "--to", "skin", "--images", "24", "--metadata", "m.csv", folder=tmp_path)
    assert "next: medflow run ham10000 --source skin --metadata m.csv" in done.stdout
    assert sorted(path.name for path in (tmp_path / "skin").iterdir()) == ["GroundTruth.csv", "images", "masks"]
    assert len((tmp_path / "m.csv").read_text().splitlines()) == 25


def test_phantom_writes_a_twin_and_says_what_it_planted(tmp_path: Path) -> None:
    done = medflow(
        "phantom", "phantom", "--to", "twin", "--images", "24", "--planted-faults", "--json", folder=tmp_path
    )
    told = json.loads(done.stdout)
    assert told["files"] == sum(path.is_file() for path in (tmp_path / "twin").rglob("*"))
    assert told["faults"]
    again = medflow("phantom", "phantom", "--to", "twin", "--images", "24", folder=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")


def test_run_json_is_the_agreed_shape() -> None:
    score = Score(head="h", label="macro", metric="auroc", value=0.9, low=0.8, high=1.0, n=7)
    outcome = RunOutcome(
        run_id="r", name="n", dataset="d", status="completed", metrics=(score,), model="d@1",
        steps=(StepOutcome(name="s", cached=True, seconds=0.0, status="cached"),),
        promotion=Promotion(promoted=False, stage="production", reasons=("why",), candidate="c", incumbent=None),
    )  # fmt: skip
    assert running.as_contract(outcome) == {
        "run_id": "r",
        "status": "completed",
        "steps": [{"name": "s", "cached": True, "seconds": 0.0}],
        "metrics": [{"head": "h", "label": "macro", "metric": "auroc", "value": 0.9, "low": 0.8, "high": 1.0, "n": 7}],
        "model": "d@1",
        "promotion": {"promoted": False, "reasons": ["why"]},
    }


# -- errors --------------------------------------------------------------------------------------

WRONG = {
    "no such verb": (["shw"], 2, "No such command 'shw'. Did you mean 'show'?", "`medflow --help` shows examples"),
    "no argument": (["run"], 2, "Missing argument 'DATASET'.", "`medflow run --help` shows examples"),
    "no such option": (["show", "phantom", "--josn"], 2, "No such option: --josn (Possible options: --json, --on)",
                       "`medflow show --help` shows examples"),
    "unknown settings": (["run", "phantm"], 2, "no settings are called 'phantm': expected ", "did you mean 'phantom'?"),
    "unknown key": (["run", "phantom", "train.epoch=1"], 2, "command line: train.epoch: expected a setting's name",
                    "did you mean train.epochs?"),
    "unknown place": (["run", "phantom", "--on", "moon"], 2,
                      "--on: expected kubernetes or local or small or the path of a YAML, found 'moon'", "for example"),
    "unknown head": (["run", "phantom", "heads=[lung]"], 2, "heads: expected ", "did you mean lungs?"),
    "no such metadata": (["run", "phantom", "--metadata", "nowhere"], 2, "--metadata: expected a file", "check"),
    "no such source": (["run", "phantom", "--source", "nowhere"], 2, "--source: expected a folder", "check the path"),
    "nothing to judge by": (["evaluate", "phantom", "--source", "nowhere"], 2, "--source: expected a folder", "check"),
    "nothing to judge": (["evaluate", ".", "--source", "."], 7, ". is no model bundle", "name a folder"),
    "no bundle": (["predict", ".", "x.png", "--out", "out"], 7, ". is no model bundle", "name a folder"),
    "too few images": (["phantom", "phantom", "--to", "t", "--images", "3"], 2, "3 images are too few", "ask for 24"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_an_error_is_one_line_and_a_hint(case: str, tmp_path: Path) -> None:
    words, code, message, hint = WRONG[case]
    done = medflow(*words, folder=tmp_path)
    first, second = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (code, "")
    assert first.startswith(f"error: {message}")
    assert second.startswith(f"hint: {hint}")


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_debug_stands_anywhere_and_adds_the_traceback(place: int) -> None:
    words = ["run", "phantom", "train.epoch=1"]
    done = medflow(*words[:place], "--debug", *words[place:])
    assert done.returncode == 2
    assert "Traceback" in done.stderr and "ConfigError" in done.stderr
    assert done.stderr.splitlines()[-2].startswith("error: ")


def _every_error() -> list[type[errors.MedflowError]]:
    found, waiting = [], [errors.MedflowError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting.extend(child for child in kind.__subclasses__() if child.__module__ == errors.__name__)
    return found


@pytest.mark.parametrize("kind", _every_error(), ids=lambda kind: kind.__name__)
def test_every_error_ends_with_its_own_code(
    kind: type[errors.MedflowError], capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> int:
        raise kind("what is\n  wrong", hint="do\nthis")

    assert cli.guarded(work, verb="run", debug=False) == kind.exit_code != 0
    assert capsys.readouterr().err == "error: what is wrong\nhint: do this\n"


def _raise(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


def test_what_nobody_foresaw_is_two_lines_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.guarded(_raise(ZeroDivisionError("by\nnought")), verb="run", debug=False) == 70
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: ZeroDivisionError: by nought"
    assert "--debug" in second
    assert cli.guarded(_raise(ZeroDivisionError("x")), verb="run", debug=True) == 70
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.guarded(_raise(KeyboardInterrupt()), verb="run", debug=False) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_a_reader_that_leaves_causes_no_traceback() -> None:
    command = f"{sys.executable} -m medflow.cli show phantom | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=GOLDEN.parents[1], check=False)
    assert done.stderr == ""


def test_show_tells_what_each_step_gets_at_a_place_and_still_prints_settings_that_run(capfd, tmp_path) -> None:
    shown = ["show", "phantom", "models=[{kind: timm, name: resnet18}]", "--on", "kubernetes"]
    assert cli.run(shown) == 0
    text = capfd.readouterr().out
    assert "# On kubernetes: stack kubernetes, at most 4 steps at a time." in text
    (line,) = [line for line in text.splitlines() if line.startswith("# train_resnet18 ")]
    assert "memory: 8Gi" in line and "shm: 2Gi" in line and "node_selector" not in line
    (tmp_path / "mine.yaml").write_text(text)
    assert cli.run(["show", str(tmp_path / "mine.yaml"), "--json"]) == 0
    plain = json.loads(capfd.readouterr().out)
    assert cli.run([*shown, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["config"] == plain["config"] and "steps" not in plain
    assert told["steps"]["train_resnet18"]["timeout"] == 86400 and told["steps"]["split"]["memory"] == "2Gi"


def test_logs_of_pods_are_not_looked_for_on_this_machine(capsys) -> None:
    assert cli.run(["logs", "any"]) == errors.PlatformError.exit_code
    assert "runs on this machine have no pods" in capsys.readouterr().err

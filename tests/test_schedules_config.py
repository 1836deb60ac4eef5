"""configs/schedules.yaml: what is shipped reads, and what cannot be meant is refused by file, line and name."""

from __future__ import annotations

from pathlib import Path

import pytest

from medflow.config import schedules
from medflow.errors import ConfigError

ENTRY = "schedules:\n  - {name: nightly, dataset: phantom, cron: '0 2 * * *'"


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_the_shipped_file_reads_and_starts_nothing():
    config = schedules.read(schedules.find(None, Path("/")))
    assert config.schedules and all(schedule.paused for schedule in config.schedules)


def test_the_working_folder_s_file_goes_before_the_shipped_one(tmp_path):
    (tmp_path / "schedules.yaml").write_text("schedules: []\n")
    assert schedules.find(None, tmp_path) == tmp_path / "schedules.yaml"


def test_a_schedule_without_a_place_has_the_file_s(tmp_path):
    config = schedules.read(
        written(
            tmp_path, f"on: kubernetes\n{ENTRY}}}\n  - {{name: b, dataset: phantom, cron: '* * * * *', on: local}}\n"
        )
    )
    assert [config.place_of(schedule) for schedule in config.schedules] == ["kubernetes", "local"]
    assert config.clusters == ("kubernetes",)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    {
        "unknown key": (f"{ENTRY}, pauzed: true}}", r"line 2: schedules\.0\.pauzed: expected a setting's name",
                        "schedules.0.paused"),
        "unknown at the top": ("shedules: []", "shedules: expected a setting's name", "schedules"),
        "cron": (ENTRY.replace("0 2 * * *", "0 25 * * *") + "}", r"line 2: schedules\.0\.cron: hour: expected 0 to 23",
                 ""),
        "zone": (f"{ENTRY}, time_zone: Europe/Belin}}", "expected a time zone such as UTC", ""),
        "name": (ENTRY.replace("nightly", "Nightly_1") + "}", r"schedules\.0\.name: expected text that matches", ""),
        "no cron": ("schedules: [{name: a, dataset: phantom}]", r"schedules\.0\.cron: expected a value", ""),
        "twice": (f"{ENTRY}}}\n  - {{name: nightly, dataset: phantom, cron: '* * * * *'}}", "two are called 'nightly'",
                  ""),
        "place": (f"{ENTRY}, on: kubernets}}", "expected kubernetes or local", "did you mean 'kubernetes'"),
    }.values(),
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(tmp_path, text, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        schedules.read(written(tmp_path, text))
    assert hint in caught.value.hint


def test_a_file_is_for_one_stack(tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("stack: elsewhere\nsteps: {default: {}}\n")
    path = written(tmp_path, f"on: kubernetes\n{ENTRY}, on: {other}}}")
    with pytest.raises(ConfigError, match="expected schedules on one stack, found kubernetes and elsewhere"):
        schedules.read(path)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        schedules.find("absent.yaml", tmp_path)

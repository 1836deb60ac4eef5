"""Which placement a run starts from: the data steps alone, on a real local ZenML store."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from zenml import pipeline

import steps
from medflow.config.reading import load
from medflow.config.sections import RunConfig
from medflow.platform import caching, runs, training_tracker

SMALL = ("source.kind=generated", "source.images=120", "models.0.size=32")


@pytest.fixture(scope="module")
def parts() -> Callable[..., tuple[dict[str, str], list[str], bool]]:
    """Runs the data steps with some settings: image → role, findings and whether the split was cached."""

    def run(*overrides: str):
        config = load("lung_disease", (*SMALL, *overrides))
        response, _ = runs.execute(lambda: _data_steps(config), config.dataset, lambda line: None)
        outputs = response.steps["split"].outputs
        loaded = {role: outputs[role][0].load() for role in ("train", "val", "test")}
        roles = {image: role for role, part in loaded.items() for image in part.column("image_id")}
        told = [finding.check for finding in loaded["train"].findings]
        return roles, told, response.steps["split"].status.value == "cached"

    return run


def _data_steps(config: RunConfig):
    """As `pipelines.training` has them, without what follows."""
    from pipelines.training import parted

    @pipeline(name=config.dataset, enable_cache=True, extra=training_tracker.settings(config))
    def data_steps():
        rows = parted(config)
        caching.sound(steps.normalize)(train=rows.train, pixels=rows.pixels)

    return data_steps


def test_no_image_leaves_test_whatever_is_left_out_or_comes_back(parts):
    first, _, _ = parts()
    # Another rule of cleaning leaves images out and so makes another set of rows of the same source.
    fewer, _, cached = parts("validate.blank_std=45", "validate.max_quarantined=1")
    assert not cached and 0 < len(fewer) < len(first)
    assert {image: fewer[image] for image in fewer} == {image: first[image] for image in fewer}
    # What had left is back, and where it was.
    again, _, cached = parts()
    assert again == first and cached


@pytest.mark.slow
def test_other_settings_are_a_new_draw_and_say_so(parts):
    first, told, _ = parts()
    assert "split_redrawn" not in told
    second, told, _ = parts("split.seed=5")
    assert second != first and "split_redrawn" in told
    assert parts("split.seed=5") == (second, told, True)
    assert parts()[0] == first

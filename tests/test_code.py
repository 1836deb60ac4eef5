"""The cache key's import closure, by mutation: what a step reaches changes its key, nothing else does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import steps
from medflow import imports
from medflow.config.sections import ImageTextModel, TimmModel
from medflow.config.sections.text import TextEncoder
from medflow.model_files import named
from medflow.platform import caching, code

ROOT = Path(__file__).resolve().parents[1]
STEPS = {name: getattr(steps, name) for name in steps.__all__ if name != "materializers"}
MUTATIONS = 20


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the first-party packages, to be edited."""
    root = tmp_path_factory.mktemp("tree")
    for package in imports.FIRST_PARTY:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.fixture
def edit(tree: Path) -> Iterator:
    """Append text to a module of the tree; undone at the end."""
    before: dict[Path, str] = {}

    def append(module: str, text: str) -> None:
        path = next(
            p for p in (_path(tree, module), _path(tree, module).with_suffix("") / "__init__.py") if p.is_file()
        )
        before.setdefault(path, path.read_text())
        path.write_text(path.read_text() + text)
        _forget()

    yield append
    for path, text in before.items():
        path.write_text(text)
    _forget()


def _path(tree: Path, module: str) -> Path:
    return tree.joinpath(*module.split(".")).with_suffix(".py")


def _forget() -> None:
    imports.names_in.cache_clear()
    imports.module_digest.cache_clear()


def sources(tree: Path) -> imports.Sources:
    return imports.Sources(tree, passed_over=code.REGISTRIES)


def keys(tree: Path) -> dict[str, str]:
    return {name: code.digest(caching.roots(step), sources(tree)) for name, step in STEPS.items()}


def reached(tree: Path) -> dict[str, set[str]]:
    return {name: set(code.reached(caching.roots(step), sources(tree)).modules) for name, step in STEPS.items()}


def depths(tree: Path, step: str) -> dict[str, int]:
    """Module → number of imports on the shortest way from a step's own modules."""
    edited = sources(tree)
    found = dict.fromkeys(caching.roots(STEPS[step]), 0)
    waiting = list(found)
    while waiting:
        module = waiting.pop(0)
        for name in edited.imported(module, imports.anywhere):
            for reached_module in edited.chain(name):
                if reached_module not in found and reached_module != module:
                    found[reached_module] = found[module] + 1
                    waiting.append(reached_module)
    return found


def reachable_edits(tree: Path) -> list[tuple[str, int]]:
    """Twenty modules spread over depths 1 to 4."""
    by_depth: dict[int, set[str]] = {1: set(), 2: set(), 3: set(), 4: set()}
    for name in STEPS:
        for module, depth in depths(tree, name).items():
            if depth in by_depth:
                by_depth[depth].add(module)
    chosen: list[tuple[str, int]] = []
    while len(chosen) < MUTATIONS and any(by_depth.values()):
        for depth, modules in by_depth.items():
            if modules and len(chosen) < MUTATIONS:
                module = min(modules)
                modules.discard(module)
                if module not in {item for item, _ in chosen}:
                    chosen.append((module, depth))
    return chosen


def test_twenty_reachable_edits_change_exactly_the_keys_of_the_steps_that_reach_them(tree, edit):
    before, closures = keys(tree), reached(tree)
    edits = reachable_edits(tree)
    assert len(edits) == MUTATIONS
    assert {depth for _, depth in edits} == {1, 2, 3, 4}
    for number, (module, _) in enumerate(edits):
        edit(module, f"\n_MUTATION_{number} = {number}\n")
        now = keys(tree)
        changed = {name for name in STEPS if now[name] != before[name]}
        assert changed == {name for name, modules in closures.items() if module in modules}, module
        assert changed, module
        before = now


def test_twenty_unrelated_edits_change_no_key(tree, edit):
    before, closures = keys(tree), reached(tree)
    everything = {module for modules in closures.values() for module in modules}
    outside = sorted(
        ".".join(path.relative_to(tree).with_suffix("").parts)
        for path in tree.rglob("*.py")
        if path.name != "__init__.py" and path.is_relative_to(tree)
    )
    unrelated = [module for module in outside if module not in everything]
    for number, module in enumerate(unrelated[: MUTATIONS // 2]):
        edit(module, f"\n_MUTATION_{number} = {number}\n")
    inside = sorted(everything)
    for number, module in enumerate(inside[:: max(1, len(inside) // (MUTATIONS - len(unrelated[: MUTATIONS // 2])))]):
        edit(module, f"\n# comment {number}\n\n\n" + '"""A string that nothing reads."""\n')
    assert len(unrelated[: MUTATIONS // 2]) > 0
    assert keys(tree) == before


def test_an_edit_of_a_dataset_changes_only_ingest(tree, edit):
    module = "medflow.datasets.phantom"
    ingest = caching.roots(STEPS["ingest"], also=[module])
    before, plain = code.digest(ingest, sources(tree)), keys(tree)
    edit(module, "\n_MUTATION = 1\n")
    assert code.digest(ingest, sources(tree)) != before
    assert keys(tree) == plain


def test_docstrings_comments_and_layout_do_not_count(tmp_path):
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    first.write_text(
        '"""One."""\n\n\nclass A:\n    """Doc."""\n\n    x: int = 1\n    """About x."""\n\n\ndef f(y):\n    return y\n'
    )
    second.write_text(
        '"""Two."""\nclass A:\n    # about x\n    x: int = 1\ndef f( y ):\n    """Doc."""\n    return y\n'
    )
    assert imports.module_digest(first) == imports.module_digest(second)


@pytest.mark.parametrize("name", ["weights.safetensors", "encoder/model.safetensors"])
def test_a_file_that_a_model_starts_from_counts_by_its_bytes(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    model = TimmModel(name="test_resnet", pretrained=str(path))
    if "/" in name:
        model = ImageTextModel(name="test_resnet", pretrained="none", text=TextEncoder(encoder=str(path.parent)))
    seen = []
    for data in (b"one", b"two", b"one"):
        path.write_bytes(data)
        seen.append(caching.sound(STEPS["train"], files=named([model])).configuration.environment)
    assert seen[0] == seen[2] != seen[1]
    assert named([TimmModel(name="test_resnet")]) == ()


@pytest.mark.parametrize("name", sorted(STEPS))
def test_every_step_reaches_its_own_module_and_the_records(name):
    found = code.reached(caching.roots(STEPS[name]))
    assert STEPS[name].entrypoint.__module__ in found.modules
    assert "medflow.records" in found.modules
    assert "zenml" in found.packages


def test_light_steps_do_not_reach_training():
    for name in ("validate", "split", "normalize", "resolve", "ingest"):
        found = code.reached(caching.roots(STEPS[name]))
        assert "medflow.train" not in found.modules
        assert "torch" not in found.packages, name

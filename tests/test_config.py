"""Settings: what is shipped loads, what cannot be meant is refused in words, and layers win in their order."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflow import datasets
from medflow.config import keys
from medflow.config.heads import check_heads, of_learnt_heads
from medflow.config.places import find_run, names, shipped, targets
from medflow.config.reading import load, read
from medflow.config.sections import Loss, RunConfig, Stage
from medflow.config.showing import MARK, as_yaml
from medflow.errors import ConfigError

RUNS = names(shipped())
RECIPES = sorted(path.stem for path in (shipped() / "recipes").glob("*.yaml"))
MINIMAL = "dataset: phantom\nmodels: [{kind: timm, name: resnet18}]\n"


def yaml_in(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


# -- what is shipped -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_every_shipped_run_loads_and_is_complete(name: str, tmp_path: Path) -> None:
    config = load(name, folder=tmp_path)
    card = datasets.get(config.dataset).card
    check_heads(config, [head.name for head in card.heads])
    assert all(model.size and model.stats for model in config.models)
    assert config.train.batch_size
    assert config.promote.floors, "a shipped run says what a model must reach"
    assert config.source.version == "latest"
    first = find_run(name, tmp_path).read_text().splitlines()[0]
    assert first.startswith(f"# medflow run {name}"), "the head of the file is the command"


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_loads(name: str, tmp_path: Path) -> None:
    path = yaml_in(tmp_path, f"recipe: {name}\n{MINIMAL}")
    assert load(path) != load(yaml_in(tmp_path, MINIMAL))


def test_models_that_a_shipped_run_leaves_out_can_be_taken_in(tmp_path: Path) -> None:
    text = find_run("lung_disease", tmp_path).read_text()
    taken_in = text.replace("  # - {", "  - {")
    (few, _), (many, sizes) = (
        (load(path), [model.size for model in load(path).models])
        for path in (yaml_in(tmp_path, text, "few"), yaml_in(tmp_path, taken_in, "many"))
    )
    assert [model.key for model in many.models[:2]] == [model.key for model in few.models]
    assert sizes == [224, 224, 224, 288, 320, 384, 224]
    assert len({json.dumps(model.model_dump() | {"name": "", "size": 0}) for model in many.models}) == 1
    assert many.train.batch_size == 6 < few.train.batch_size
    big = load(tmp_path / "many.yaml", ["recipe=[two_stage, radiograph, gpu_32gb]"])
    assert (big.train.batch_size, big.train.precision) == (96, "bf16-mixed")
    assert big.train.stages == few.train.stages


@pytest.mark.parametrize("path", sorted(shipped().rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_horizontal_flip_is_argued_for(path: Path) -> None:
    """Left and right carry meaning in most images: a file that flips says above it why, or what it costs."""
    lines = path.read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        words = line.strip()
        if words.startswith("flip:") and float(words.split()[1]) > 0:
            assert before.strip().startswith("#"), f"{path.name}: {words}"


@pytest.mark.parametrize("name", RUNS)
def test_a_shipped_run_on_radiographs_does_not_flip(name: str, tmp_path: Path) -> None:
    config = load(name, folder=tmp_path)
    if "radiograph" in datasets.get(config.dataset).card.modality.lower():
        assert config.train.augment.flip == 0


def test_every_dataset_has_settings_and_every_place_a_stack() -> None:
    assert set(datasets.names()) == {load(name).dataset for name in RUNS}
    assert "local" in targets()


def test_shipped_settings_state_only_what_differs(tmp_path: Path) -> None:
    """A value that repeats the default says nothing, unless it is a seed, a version or a flip (which are argued)."""
    argued = ("seed", "version", "kind", "flip", "vertical_flip", "official", "dataset", "images", "size")
    for name in RUNS:
        reading = read(name, folder=tmp_path)
        for key, origin in reading.origins.items():
            same = _at(reading.tree, key) == _at(reading.defaults, key)
            allowed = key.rpartition(".")[2] in argued or key.startswith(("train.augment", "train.stages"))
            assert allowed or not same or origin.layer == "models.yaml", f"{name}: {key} repeats the default"


# -- refusals, word for word ----------------------------------------------------------------------

REFUSED = {
    "unknown key in the file": (
        MINIMAL + "train:\n  epoch: 3\n", [],
        "{file} line 4: train.epoch: expected a setting's name, found an unknown one (with the value 3)",
        "did you mean train.epochs? `medflow show NAME` prints every setting",
    ),
    "unknown section": (
        MINIMAL + "trian: {}\n", [],
        "{file} line 3: trian: expected a setting's name, found an unknown one (with the value {{}})",
        "did you mean train? `medflow show NAME` prints every setting",
    ),
    "unknown key of a model": (
        "dataset: phantom\nmodels:\n  - kind: timm\n    name: resnet18\n    chanels: [8]\n", [],
        "{file} line 5: models.0.chanels: expected a setting's name, found an unknown one (with the value [8])",
        "did you mean models.0.name? `medflow show NAME` prints every setting",
    ),
    "unknown key on the command line": (
        MINIMAL, ["train.stages.0.lrr=1"],
        "command line: train.stages.0.lrr: expected a setting's name, found an unknown one (with the value 1)",
        "did you mean train.stages.0.lr? `medflow show NAME` prints every setting",
    ),
    "a stage that is not there": (
        MINIMAL, ["train.stages.3.lr=1"],
        "command line: train.stages.3.lr: expected a setting's name, found an unknown one (with the value 1)",
        "did you mean train.stages.0.lr? `medflow show NAME` prints every setting",
    ),
    "a short form's misspelling": (
        MINIMAL, ["model.pretrainde=none"],
        'command line: model.pretrainde: expected a setting\'s name, found an unknown one (with the value "none")',
        "did you mean model.pretrained? `medflow show NAME` prints every setting",
    ),
    "a short form that no model has": (
        MINIMAL, ["model.channels=[8]"],
        'command line: model.channels: expected a setting of a listed model, found "model.channels=[8]"',
        "listed: resnet18",
    ),
    "wrong type": (
        MINIMAL, ["train.stages.0.lr=fast"],
        'command line: train.stages.0.lr: expected a number, found "fast"',
        "the default is 0.0003",
    ),
    "a number as text": (
        MINIMAL + "split: {seed: '1'}\n", [],
        '{file} line 3: split.seed: expected a whole number, found "1"',
        "the default is 0",
    ),
    "true is no number": (
        MINIMAL, ["train.epochs=true"],
        "command line: train.stages.0.epochs: expected a whole number, found true",
        "the default is 10",
    ),
    "yes is not true": (
        MINIMAL, ["prune.enabled=yes"],
        'command line: prune.enabled: expected true or false, found "yes"',
        "None takes configs/models.yaml: on where every listed model can lose channels. The run's graph is fixed "
        "before a model is selected, so one that cannot takes pruning out of the run.",
    ),
    "a word for a list": (
        MINIMAL, ["heads=diagnosis"],
        'command line: heads: expected a list, found "diagnosis"',
        "Which of the dataset's heads to learn; None takes all.",
    ),
    "a value for a section": (
        MINIMAL, ["train=5"],
        "command line: train: expected a mapping, found 5",
        "write its settings below `train:`, or train.KEY=value",
    ),
    "impossible value": (
        MINIMAL + "quantize:\n  calibration_images: 2\n", [],
        "{file} line 4: quantize.calibration_images: expected a number of at least 8, found 2",
        "Training rows that calibrate the activations' ranges. The default is 128",
    ),
    "not finite": (
        MINIMAL, ["train.clip=1e999"],
        "command line: train.clip: expected a finite number, found Infinity",
        "Largest gradient norm; 0 does not clip. The default is 1.0",
    ),
    "not one of the words": (
        MINIMAL, ["ingest.fit=strech"],
        "command line: ingest.fit: expected 'stretch' or 'pad', found \"strech\"",
        "did you mean stretch?",
    ),
    "values that contradict": (
        MINIMAL, ["split.train=0.9"],
        "command line: split: train, val and test add up to 1.2, expected 1",
        "`medflow show NAME` prints every setting",
    ),
    "unknown kind of model": (
        "dataset: phantom\nmodels:\n  - {kind: tim, name: resnet18}\n", [],
        '{file} line 3: models.0.kind: expected {kinds}, found "tim"',
        "did you mean timm?",
    ),
    "dropouts that do not fit the hidden layers": (
        "dataset: phantom\nmodels:\n  - {kind: timm, name: resnet18, hidden: [128], head_dropout: [0.3]}\n", [],
        "{file} line 3: models.0: head_dropout has 1 values, expected 2: one before each of hidden and one before the "
        "last layer",
        "`medflow show NAME` prints every setting",
    ),
    "a decoder that SMP has not": (
        "dataset: phantom\nmodels:\n  - {kind: smp, name: unett}\n", [],
        "{file} line 3: models.0.name: expected 'unet', 'unetplusplus', 'deeplabv3', 'deeplabv3plus' or 'segformer', "
        'found "unett"',
        "did you mean unet?",
    ),
    "a model without a kind": (
        "dataset: phantom\nmodels:\n  - {name: resnet18}\n", [],
        "{file} line 3: models.0.kind: expected {kinds}, found nothing",
        "for example `models: [{{kind: timm, name: resnet18}}]`",
    ),
    "no models": (
        "dataset: phantom\n", [],
        "{file}: models: expected a list of at least one model, found nothing",
        "for example `models: [{{kind: timm, name: resnet18}}]`",
    ),
    "two models of one name": (
        MINIMAL, ["models=[{kind: timm, name: resnet18}, {kind: timm, name: resnet18}]"],
        "{file}: two models are called 'resnet18'; give one of them an `id`",
        "`medflow show NAME` prints every setting",
    ),
    "no dataset": (
        "models: [{kind: timm, name: resnet18}]\n", [],
        "{file}: dataset: expected a value, found nothing",
        "A dataset of `medflow datasets`.",
    ),
    "no equals sign": (
        MINIMAL, ["epochs"],
        "command line: expected key=value, found 'epochs'",
        "for example train.epochs=2; options such as --on start with two dashes",
    ),
    "no YAML": (
        "dataset: [phantom\n", [],
        "{path}: no valid YAML: expected ',' or ']', but got '<stream end>' (line 2, column 1)",
        "check indentation and quotes there",
    ),
    "a key twice": (
        MINIMAL + "split: {seed: 1, seed: 2}\n", [],
        "{path}: no valid YAML: the key 'seed' stands twice (line 3, column 18)",
        "check indentation and quotes there",
    ),
    "a list for a file": (
        "- dataset\n", [],
        "{path}: expected a mapping of settings, found ['dataset']",
        "write `key: value` lines",
    ),
    "unknown recipe": (
        "recipe: scrach\n" + MINIMAL, [],
        "{file}: recipe: expected a shipped recipe or a path beside the YAML, found 'scrach'",
        f"did you mean 'scratch'? there is {', '.join(RECIPES)}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusal_names_file_key_expected_found_and_the_nearest(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, overrides, message, hint = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    path = yaml_in(tmp_path, text)
    with pytest.raises(ConfigError) as refusal:
        load("mine", overrides)
    assert refusal.value.message == message.format(file="mine.yaml", path=path, kinds=" or ".join(keys.MODEL_KINDS))
    assert refusal.value.hint == hint.format()


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_misspelt_name_is_refused_and_its_origin_is_offered(data: st.DataObject) -> None:
    """One letter left out of the last part of any setting's name: refused, and the real name is the hint."""
    tree = dict(read("phantom").tree)
    known = [
        name for name in keys.valid_names(tree) if len(name.rpartition(".")[2]) > 5 and "loss_weights." not in name
    ]
    name = data.draw(st.sampled_from(known))
    at = data.draw(st.integers(len(name) - len(name.rpartition(".")[2]), len(name) - 1))
    wrong = name[:at] + name[at + 1 :]
    if wrong in known:
        return
    with pytest.raises(ConfigError) as refusal:
        load("phantom", [f"{wrong}=1"])
    assert wrong in refusal.value.message
    meant = refusal.value.hint.removeprefix("did you mean ").partition("?")[0]
    assert meant.rpartition(".")[2] == name.rpartition(".")[2]


# -- values --------------------------------------------------------------------------------------


@given(st.floats(min_value=1e-12, max_value=1e12))
@settings(max_examples=30, deadline=None)
def test_a_number_means_the_same_however_it_is_written(value: float) -> None:
    for text in (repr(value), f"{value!r}".replace("e-0", "e-"), f"{value:.17e}"):
        assert load("phantom", [f"train.stages.0.lr={text}"]).train.stages[0].lr == value


def test_yaml_is_read_as_people_mean_it(tmp_path: Path) -> None:
    text = (
        MINIMAL + "train:\n  stages: [{lr: 1e-4}]\nvalidate: {blank: off}\nsource: {version: 5}\nsplit: {seed: 010}\n"
    )
    config = load(yaml_in(tmp_path, text))
    assert config.train.stages[0].lr == 1e-4
    assert config.validate_.blank == "off"
    assert config.source.version == "5"
    assert config.split.seed == 10


def test_an_empty_section_changes_nothing(tmp_path: Path) -> None:
    assert load(yaml_in(tmp_path, MINIMAL + "train:\n")) == load(yaml_in(tmp_path, MINIMAL))


def test_a_dotted_key_in_a_file_changes_one_place(tmp_path: Path) -> None:
    text = f"recipe: finetune\n{MINIMAL}train.stages.1.lr: 7e-5\n"
    first, second = load(yaml_in(tmp_path, text)).train.stages
    assert second.lr == 7e-5
    assert (first, second.epochs) == (load(yaml_in(tmp_path, f"recipe: finetune\n{MINIMAL}")).train.stages[0], 45)


def test_defaults_of_a_section_hold_below_a_partial_one(tmp_path: Path) -> None:
    stage = load(yaml_in(tmp_path, MINIMAL + "prune: {stage: {epochs: 7}}\n")).prune.stage
    assert (stage.epochs, stage.lr) == (7, RunConfig.model_fields["prune"].default.stage.lr)


# -- precedence ----------------------------------------------------------------------------------

LAYERS = ("default", "recipe", "yaml", "command line")


@settings(max_examples=25, deadline=None)
@given(
    present=st.sets(st.sampled_from(LAYERS[1:])),
    key=st.sampled_from(["train.seed", "split.seed", "prune.stage.epochs"]),
)
def test_the_last_layer_that_speaks_wins(tmp_path_factory: pytest.TempPathFactory, present: set[str], key: str) -> None:
    folder = tmp_path_factory.mktemp("layers")
    value = {layer: 40 + index for index, layer in enumerate(LAYERS)}
    yaml_in(folder, f"{key}: {value['recipe']}\n", "kitchen") if "recipe" in present else yaml_in(
        folder, "{}", "kitchen"
    )
    text = "recipe: kitchen.yaml\n" + MINIMAL + (f"{key}: {value['yaml']}\n" if "yaml" in present else "")
    reading = read(yaml_in(folder, text), [f"{key}={value['command line']}"] if "command line" in present else [])
    winner = next((layer for layer in reversed(LAYERS) if layer in present), "default")
    assert _at(reading.tree, key) == (_at(reading.defaults, key) if winner == "default" else value[winner])
    assert (reading.origins[key].layer if key in reading.origins else "default") == winner


@settings(max_examples=25, deadline=None)
@given(
    order=st.permutations(
        ["train.lr=3.0", "train.stages.1.lr=4.0", "train.stages=[{epochs: 9}, {epochs: 8}, {epochs: 7, lr: 5}]"]
    )
)
def test_longer_keys_win_over_shorter_ones_in_any_order(order: list[str]) -> None:
    stages = load("phantom", order).train.stages
    assert [(stage.epochs, stage.lr) for stage in stages] == [(9, 3.0), (8, 4.0), (7, 5.0)]


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.integers(1, 99), min_size=1, max_size=4))
def test_of_two_equal_keys_the_last_wins(values: list[int]) -> None:
    assert load("phantom", [f"train.epochs={value}" for value in values]).train.stages[0].epochs == values[-1]


def test_train_sets_every_stage_and_train_itself(tmp_path: Path) -> None:
    config = load(yaml_in(tmp_path, "recipe: finetune\n" + MINIMAL), ["train.epochs=2", "train.seed=9"])
    assert [stage.epochs for stage in config.train.stages] == [2, 2]
    assert config.train.seed == 9
    assert config.prune.stage.epochs == Stage(epochs=3).epochs, "pruning has a stage of its own"


@pytest.mark.parametrize("key", sorted(Stage.model_fields))
def test_every_stage_setting_has_a_short_form(key: str) -> None:
    value = json.dumps(Stage.model_fields[key].default)
    assert read("phantom", [f"train.{key}={value}"]).origins[f"train.stages.0.{key}"].layer == "command line"


def test_model_sets_every_model_that_has_the_key(tmp_path: Path) -> None:
    text = "dataset: phantom\nmodels: [{kind: timm, name: resnet18}, {kind: monai_unet}]\n"
    config = load(
        yaml_in(tmp_path, text), ["model.pretrained=none", "model.features=16", "models.1.size=64", "model.size=96"]
    )
    assert [model.pretrained for model in config.models] == ["none", "none"]
    assert [model.size for model in config.models] == [96, 64]
    assert config.models[1].features == 16


def test_short_forms_are_for_the_command_line_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.epochs: expected a setting's name"):
        load(yaml_in(tmp_path, MINIMAL + "train: {epochs: 3}\n"))


def test_a_working_folder_comes_before_what_is_shipped(tmp_path: Path) -> None:
    yaml_in(tmp_path, MINIMAL + "split: {seed: 77}\n", "phantom")
    assert load("phantom", folder=tmp_path).split.seed == 77
    assert load("phantom", folder=tmp_path / "elsewhere").split.seed == 0


def test_settings_that_are_no_run_are_not_offered(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no settings are called 'models'"):
        load("models", folder=tmp_path)


# -- models.yaml ---------------------------------------------------------------------------------


def test_what_is_open_comes_from_models_yaml_and_the_smallest_batch_wins(tmp_path: Path) -> None:
    text = "dataset: phantom\nmodels: [{kind: timm, name: %s}, {kind: timm, name: %s}]\n"
    one = load(yaml_in(tmp_path, MINIMAL)).train.batch_size
    both = load(yaml_in(tmp_path, text % ("resnet18", "tf_efficientnetv2_m")))
    assert both.models[1].size == 320
    assert both.train.batch_size is not None and one is not None and both.train.batch_size < one
    assert load(yaml_in(tmp_path, text % ("resnet18", "resnet50")), ["train.batch_size=3"]).train.batch_size == 3


def test_a_model_that_cannot_be_pruned_takes_pruning_out_of_the_run_and_show_says_so(tmp_path: Path) -> None:
    text = "dataset: phantom\nmodels: [{kind: timm, name: resnet18}, {kind: timm, name: %s}]\n"
    assert load(yaml_in(tmp_path, text % "resnet50")).prune.enabled is True
    path = yaml_in(tmp_path, text % "mambaout_tiny")
    assert load(path).prune.enabled is False
    assert "  enabled: false  # <- configs/models.yaml: mambaout_tiny cannot be pruned" in as_yaml(read(path))
    assert load(path, ["prune.enabled=true"]).prune.enabled is True


def test_a_model_with_an_encoder_is_looked_up_by_both_names(tmp_path: Path) -> None:
    config = load(yaml_in(tmp_path, "dataset: phantom\nmodels: [{kind: smp, name: unetplusplus, encoder: resnet34}]\n"))
    assert config.models[0].key == "unetplusplus_resnet34"
    assert (config.models[0].size, config.train.batch_size) == (256, 12)


# -- show ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_what_is_shown_runs_again_as_the_same(name: str, tmp_path: Path) -> None:
    reading = read(name, ["split.seed=3", "train.lr=1e-7"])
    assert load(yaml_in(tmp_path, as_yaml(reading))) == reading.config


def test_only_what_is_not_the_default_is_marked(tmp_path: Path) -> None:
    reading = read(yaml_in(tmp_path, MINIMAL + "split: {seed: 5, official: false}\n"), ["train.clip=0.5"])
    marked = {
        line.split(":")[0].strip(" -"): line.split(MARK)[1] for line in as_yaml(reading).splitlines() if MARK in line
    }
    assert set(marked) == {"dataset", "name", "seed", "clip", "size", "stats", "batch_size", "enabled"}
    assert marked["clip"] == "command line"
    assert marked["seed"].endswith("mine.yaml line 3")
    assert marked["size"] == "configs/models.yaml"


def test_heads_and_weights_must_be_the_datasets() -> None:
    declared = ["diagnosis", "lungs", "signs"]
    check_heads(load("phantom", ["heads=[signs]"]), declared)
    for override in ("heads=[diagnosi]", "heads=[]", "train.loss_weights.lung=2", "promote.floors.0.head=sign"):
        with pytest.raises(ConfigError, match=override.split("=")[0].rpartition(".0")[0] or override.split("=")[0][:5]):
            check_heads(load("phantom", [override]), declared)


@pytest.mark.parametrize("kind", ["monai_unet", "dual_path"])
def test_a_kind_with_one_architecture_takes_no_other_name(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"models.0.name: expected '{kind}', found") as refusal:
        load("phantom", [f"models=[{{kind: {kind}, name: {kind}2}}]"])
    assert refusal.value.hint == f"did you mean {kind}?"
    with pytest.raises(ConfigError) as refusal:
        load("phantom", [f"models=[{{kind: {kind}, name: resnet50}}]"])
    assert "another is another `kind`" in refusal.value.hint
    assert load("phantom", [f"models=[{{kind: {kind}}}]"]).models[0].name == kind


def test_what_belongs_to_a_head_that_is_not_learnt_reaches_no_step() -> None:
    declared = ["diagnosis", "lungs", "signs"]
    config = of_learnt_heads(load("phantom", ["heads=[diagnosis]", "train.losses.lungs.kind=tversky"]), declared)
    assert set(config.train.loss_weights) == {"diagnosis"}
    assert not config.train.losses
    everything = load("phantom", ["heads=null"])
    assert of_learnt_heads(everything, declared) == everything


def _at(tree: object, key: str) -> object:
    for part in key.split("."):
        try:
            tree = tree[int(part)] if isinstance(tree, list) else tree[part]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            return ...
    return tree


# -- the operating point ---------------------------------------------------------------------------


def test_an_operating_point_is_a_rule_and_what_it_needs() -> None:
    found = load("nih_chestxray14", ["train.calibrate.rule=sensitivity", "train.calibrate.at=0.9"]).train.calibrate
    assert (found.rule, found.at) == ("sensitivity", 0.9)
    assert load("nih_chestxray14").train.calibrate.rule == "youden"
    for typed in ("train.calibrate.rule=sensitivity", "train.calibrate.at=0.9", "train.calibrate.at=1.0"):
        with pytest.raises(ConfigError, match=r"train\.calibrate"):
            load("nih_chestxray14", [typed])


# -- losses: a mapping by head, whose values are a mapping or a list --------------------------------


def test_a_loss_is_set_in_a_yaml_and_changed_on_the_command_line(tmp_path: Path) -> None:
    text = MINIMAL + "train:\n  losses: {diagnosis: {kind: focal, gamma: 3}, lungs: [{kind: dice}, {kind: focal}]}\n"
    typed = ["train.losses.diagnosis.gamma=1", "train.losses.lungs.1.weight=0.5", "train.losses.mask.kind=tversky"]
    found = load(yaml_in(tmp_path, text), typed).train.losses
    assert found["diagnosis"] == Loss(kind="focal", gamma=1.0)
    assert found["lungs"] == (Loss(kind="dice"), Loss(kind="focal", weight=0.5))
    assert found["mask"] == Loss(kind="tversky")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["independent.kind=asymmetric"], Loss(kind="asymmetric")),
        (["independent={margin: 0.1, kind: asymmetric}"], Loss(kind="asymmetric", margin=0.1)),
        (["independent.gamma=3", "independent.kind=asymmetric"], Loss(kind="asymmetric", gamma=3)),
        (["independent.kind=focal"], Loss(kind="focal", gamma=2, alpha=0.25)),
        (["independent.gamma=3"], Loss(kind="focal", gamma=3, alpha=0.25)),
    ],
    ids=lambda item: str(item[0]) if isinstance(item, list) else "",
)
def test_a_loss_of_another_kind_takes_nothing_of_the_recipes(typed, expected) -> None:
    reading = read("nih_chestxray14", [f"train.losses.{pair}" for pair in typed])
    assert reading.config.train.losses["independent"] == expected
    assert ("train.losses.independent.alpha" in reading.origins) == (expected.kind == "focal")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("{kind: tverksy}", "train.losses.mask.kind: expected .*tversky"),
        ("{kind: tversky, alpha: 1.5}", "train.losses.mask.alpha: expected a number of at most 1, found 1.5"),
        ("[{kind: dice}, {kind: dice, apha: 1}]", r"train.losses.mask.1.apha: expected a setting's name"),
        ("{kind: dice, alpha: 0.5}", "dice has no alpha; it takes weight"),
        ("[]", "train.losses.mask: expected at least 1 entry"),
        ("dice", "train.losses.mask: expected a mapping, found"),
    ],
)
def test_an_impossible_loss_is_refused_by_its_place(tmp_path: Path, typed: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(yaml_in(tmp_path, MINIMAL), [f"train.losses.mask={typed}"])

from __future__ import annotations

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medflow import models
from medflow.blocks import blocks, norms
from medflow.config.sections import MonaiUNet, Stage, TimmModel
from medflow.errors import ConfigError
from medflow.schedule import freeze, lr_at, make_optimizer, training_mode

FAMILIES = [
    TimmModel(name=name, size=tiny.SIZE, pretrained="none", stats="unit")
    for name in ("test_resnet", "test_vit", "test_efficientnet", "test_convnext")
] + [MonaiUNet(size=tiny.SIZE, channels=(4, 8, 16), features=4, label_hidden=(8,), label_dropout=(0.0, 0.0))]


def network(model=FAMILIES[0]) -> models.Network:
    return models.build(model, (tiny.LABELS,), tiny.preprocess())


def rates(optimizer) -> dict[int, float]:
    return {id(parameter): group["base"] for group in optimizer.param_groups for parameter in group["params"]}


@settings(max_examples=50, deadline=None)
@given(
    step=st.integers(0, 99), warmup=st.floats(0, 1), reductions=st.integers(0, 6), base=st.floats(1e-6, 1.0),
    lr_min=st.sampled_from([0.0, 1e-3]),
)  # fmt: skip
@pytest.mark.parametrize("schedule", ["constant", "cosine", "plateau"])
def test_a_rate_is_positive_and_never_above_its_base(schedule, step, warmup, reductions, base, lr_min):
    stage = Stage(schedule=schedule, warmup=warmup, lr_min=lr_min)
    assert 0 < lr_at(stage, step, 100, base=base, reductions=reductions) <= base


def test_a_plateau_multiplies_the_rate_and_stops_at_its_floor():
    stage = Stage(lr=1.0, schedule="plateau", plateau_factor=0.1, lr_min=0.005, warmup=0.0)
    assert [lr_at(stage, 5, 10, reductions=n) for n in range(4)] == pytest.approx([1.0, 0.1, 0.01, 0.005])


def test_each_rate_has_its_own_cosine_to_the_same_end():
    stage = Stage(lr=3e-5, lr_min=1e-7, warmup=0.0)
    for base in (3e-5, 5e-6):
        run = [lr_at(stage, step, 15, base=base) for step in range(15)]
        oracle = torch.optim.lr_scheduler.CosineAnnealingLR(
            torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=base), T_max=15, eta_min=1e-7
        )
        for rate in run:
            assert rate == pytest.approx(oracle.get_last_lr()[0], rel=1e-5)
            oracle.optimizer.step()
            oracle.step()


def test_backbone_norm_and_head_learn_at_their_own_rates():
    net = network()
    found = rates(make_optimizer(net, Stage(lr=1e-3, lr_backbone=1e-4, lr_norm=1e-5), fused=False))
    normalizing = set(map(id, norms(net)))
    for parameter in net.parameters_of("backbone"):
        assert found[id(parameter)] == (1e-5 if id(parameter) in normalizing else 1e-4)
    assert {found[id(parameter)] for parameter in net.parameters_of("head")} == {1e-3}
    assert set(rates(make_optimizer(net, Stage(lr=1e-3), fused=False)).values()) == {1e-3}
    assert len(make_optimizer(net, Stage(), fused=False).param_groups) == 2


@pytest.mark.parametrize(
    ("settings_", "kind"),
    [({"optimizer": "adam"}, torch.optim.Adam), ({"optimizer": "adamw"}, torch.optim.AdamW),
     ({"optimizer": "sgd", "momentum": 0.8, "nesterov": True}, torch.optim.SGD)],
)  # fmt: skip
def test_an_optimizer_is_torchs(settings_, kind):
    optimizer = make_optimizer(network(), Stage(**settings_), fused=False)
    assert type(optimizer) is kind
    assert kind is not torch.optim.SGD or (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (
        0.8,
        True,
    )


@pytest.mark.parametrize("model", FAMILIES, ids=lambda model: model.name)
def test_blocks_hold_every_parameter_once_and_the_last_is_the_last(model):
    net = network(model)
    found = [parameter for block in blocks(net.backbone) for parameter in block]
    assert sorted(map(id, found)) == sorted(map(id, net.backbone.parameters()))
    assert all(any(parameter.ndim > 1 for parameter in block) for block in blocks(net.backbone)[1:])
    freeze(net, Stage(freeze="backbone", unfreeze_blocks=1))
    learning = [name for name, parameter in net.backbone.named_parameters() if parameter.requires_grad]
    names = [name for name, _ in net.backbone.named_parameters()]
    assert 0 < len(learning) < len(names) and names[0] not in learning
    if model.name == "test_resnet":
        assert all(name.startswith("layer4.0") for name in learning)


def test_frozen_blocks_are_in_evaluation_mode_and_open_ones_learn():
    net = network()
    stage = Stage(freeze="backbone", unfreeze_blocks=1)
    freeze(net, stage)
    training_mode(net, stage)
    modes = {
        name: module.training for name, module in net.backbone.named_modules() if isinstance(module, nn.BatchNorm2d)
    }
    assert {name for name, training in modes.items() if training} == {n for n in modes if n.startswith("layer4.")}
    assert all(module.training for module in net.heads.modules())


def test_what_came_pretrained_in_the_neck_is_evaluated_with_the_frozen_backbone():
    encoder = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    neck = nn.Sequential(encoder, nn.Dropout(0.5))
    net = models.Network(nn.Linear(4, 4), {}, tiny.preprocess(), neck, (encoder,))
    stage = Stage(freeze="backbone")
    freeze(net, stage)
    training_mode(net, stage)
    assert not encoder[1].training and neck[1].training


def test_more_blocks_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="has 5 blocks"):
        freeze(network(), Stage(freeze="backbone", unfreeze_blocks=99))


@pytest.mark.parametrize(
    "wrong",
    [{"unfreeze_blocks": 1}, {"nesterov": True}, {"optimizer": "sgd", "nesterov": True, "momentum": 0.0}],
    ids=["no block is frozen", "no sgd", "no momentum"],
)
def test_a_stage_that_contradicts_itself_is_refused(wrong):
    with pytest.raises(ValueError, match="needs"):
        Stage(**wrong)

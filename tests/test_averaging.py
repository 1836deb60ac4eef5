from __future__ import annotations

import torch
from torch import nn

from medflow.averaging import Average


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def moved(net: nn.Module, by: float) -> None:
    with torch.no_grad():
        for value in net.state_dict().values():
            value += int(by) if value.dtype == torch.int64 else by


def test_it_is_timms_average_without_the_first_steps():
    from timm.utils import ModelEmaV3

    net = network()
    average, theirs = Average(net, 0.5, {}), ModelEmaV3(net, decay=0.5)
    for step in range(100, 104):
        moved(net, 1.0)
        average.update(step)
        theirs.update(net)
    for name, value in theirs.module.state_dict().items():
        torch.testing.assert_close(average.tensors[name], value)


def test_the_first_steps_count_more():
    net = network()
    average = Average(net, 0.999, {})
    start = net[0].bias.detach().clone()
    moved(net, 1.0)
    average.update(0)
    torch.testing.assert_close(average.tensors["0.bias"], start + 0.9)


def test_in_place_lends_the_average_and_gives_the_weights_back():
    net = network()
    average = Average(net, 0.9, {})
    before = average.tensors["0.weight"].clone()
    moved(net, 1.0)
    own = {name: value.clone() for name, value in net.state_dict().items()}
    with average.in_place():
        assert torch.equal(net[0].weight, before)
    assert all(torch.equal(value, own[name]) for name, value in net.state_dict().items())
    assert torch.equal(average.tensors["0.weight"], before)


def test_it_goes_on_from_a_checkpoint():
    net = network()
    stored = {name: value + 1 for name, value in net.state_dict().items()}
    average = Average(net, 0.9, stored)
    assert all(torch.equal(value, stored[name]) for name, value in average.tensors.items())

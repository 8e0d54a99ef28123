"""Convolutions in their fast layout give what the plain layers give, to any order."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from robustvae.models.base import frozen
from robustvae.models.layout import channels_last

LAYERS = [
    nn.Conv2d(1, 8, 3),
    nn.Conv2d(1, 8, 3, stride=2, padding=1),
    nn.Conv2d(3, 5, (3, 2), stride=(1, 3), padding=(2, 0), dilation=(2, 1), bias=False),
    nn.Conv2d(8, 8, 3, padding=1),
    nn.Conv2d(8, 6, (9, 8)),
    nn.Conv2d(8, 6, (11, 10), stride=2, padding=(1, 2)),
    nn.Conv2d(8, 6, (5, 12), stride=9, padding=(0, 3), bias=False),
    nn.Conv2d(8, 6, 3, stride=8, padding=1),
    nn.Conv2d(8, 6, 3, stride=12, padding=5),
    nn.Conv2d(2, 4, 3, groups=2),
    nn.Conv2d(2, 4, 3, padding="same"),
    nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
    nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1),
    nn.ConvTranspose2d(5, 3, (3, 2), stride=(3, 1), padding=(1, 0), dilation=2, bias=False),
    nn.ConvTranspose2d(5, 2, 3, stride=2, padding=1, output_padding=1),
    nn.ConvTranspose2d(8, 8, 3),
]


def derivatives(layer, x, direction):
    y = x.clone().requires_grad_()
    value = layer(y)
    (slope,) = torch.autograd.grad(value.square().sum(), y, create_graph=True)
    (curve,) = torch.autograd.grad(slope, y, direction)
    return value.detach(), slope.detach(), curve


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_values_and_derivatives_are_the_plain_ones(layer, generator):
    layer = layer.double()
    x, direction = torch.rand(2, 9, layer.in_channels, 9, 8, generator=generator).unbind()
    with frozen(layer):
        plain = derivatives(layer, x, direction)
        with channels_last(layer):
            fast = derivatives(layer, x, direction)
    for one, other in zip(plain, fast, strict=True):
        assert_close(one, other)
    assert "forward" not in vars(layer)


def test_weights_still_learn_and_come_back_as_they_were(generator):
    layer = nn.Conv2d(1, 4, 3)
    kept = layer.weight.data
    with channels_last(layer):
        layer(torch.rand(2, 1, 5, 5, generator=generator)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.data.data_ptr() == kept.data_ptr()


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 1, 3)], ids=str)
def test_activations_may_work_in_place(layer, generator):
    network = nn.Sequential(layer, nn.ReLU()).double()
    x = torch.rand(8, layer.in_channels, 6, 6, generator=generator).requires_grad_()
    with frozen(network):
        (plain,) = torch.autograd.grad(network(x).sum(), x)
        network[1].inplace = True
        with channels_last(network):
            (fast,) = torch.autograd.grad(network(x).sum(), x)
    assert_close(plain, fast)


@pytest.mark.parametrize("batch", [1, 9])
def test_a_sequence_of_layers_is_the_plain_one(batch, generator):
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 5, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ReLU(),
        nn.ConvTranspose2d(5, 6, 3),
        nn.Tanh(),
        nn.ConvTranspose2d(6, 1, 3, stride=2),
    ).double()
    x, direction = torch.rand(2, batch, 1, 13, 15, generator=generator, dtype=torch.double)
    with frozen(network):
        plain = derivatives(network, x, direction)
        with channels_last(network):
            fast = derivatives(network, x, direction)
    for one, other in zip(plain, fast, strict=True):
        assert_close(one, other)


def test_layers_run_one_by_one_keep_their_outputs(generator):
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())
    x, seen = torch.rand(8, 2, 6, 6, generator=generator), []
    with torch.no_grad(), frozen(network), channels_last(network):
        for layer in network:
            seen.append(x := layer(x))
    assert seen[0].min() < 0


def test_hooks_see_every_layer(generator):
    network, seen = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()), []
    for layer in network:
        layer.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad(), frozen(network), channels_last(network):
        network(torch.rand(8, 2, 6, 6, generator=generator))
    assert len(seen) == 2
    assert seen[0].min() < 0


def test_a_bias_that_learns_is_left_to_learn(generator):
    layer = nn.Conv2d(1, 4, 3)
    layer.weight.requires_grad_(False)
    with channels_last(layer):
        layer(torch.rand(8, 1, 5, 5, generator=generator)).sum().backward()
    assert layer.bias.grad is not None

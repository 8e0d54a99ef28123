"""Convolutions in their fast layout give what the plain layers give, to any order."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from robustvae import Attack, Ball, MaximumDamage, ProjectedAscent, Victim, models, seeding
from robustvae.models.base import frozen
from robustvae.models.layout import channels_last, is_ours, laid_out
from robustvae.robustness import displacements

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
def test_values_and_derivatives_are_plain_ones(layer, generator):
    layer = layer.double()
    x, direction = torch.rand(2, 9, layer.in_channels, 9, 8, generator=generator).unbind()
    with frozen(layer):
        plain = derivatives(layer, x, direction)
        with laid_out(layer):
            fast = derivatives(layer, x, direction)
    for one, other in zip(plain, fast, strict=True):
        assert_close(one, other)
    assert "forward" not in vars(layer)


def test_weights_still_learn_come_back(generator):
    layer = nn.Conv2d(1, 4, 3)
    kept = layer.weight.data
    with laid_out(layer):
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
        with laid_out(network):
            (fast,) = torch.autograd.grad(network(x).sum(), x)
    assert_close(plain, fast)


@pytest.mark.parametrize("batch", [1, 9])
def test_sequence_of_layers_is_plain_one(batch, generator):
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
        with laid_out(network):
            fast = derivatives(network, x, direction)
    for one, other in zip(plain, fast, strict=True):
        assert_close(one, other)


def test_layers_run_keep_outputs(generator):
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())
    x, seen = torch.rand(8, 2, 6, 6, generator=generator), []
    with torch.no_grad(), frozen(network), laid_out(network):
        for layer in network:
            seen.append(x := layer(x))
    assert seen[0].min() < 0


def test_hooks_see_every_layer(generator):
    network, seen = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()), []
    for layer in network:
        layer.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad(), frozen(network), laid_out(network):
        network(torch.rand(8, 2, 6, 6, generator=generator))
    assert len(seen) == 2
    assert seen[0].min() < 0


def test_bias_learns_left_to_learn(generator):
    layer = nn.Conv2d(1, 4, 3)
    layer.weight.requires_grad_(False)
    with laid_out(layer):
        layer(torch.rand(8, 1, 5, 5, generator=generator)).sum().backward()
    assert layer.bias.grad is not None


def test_foreign_modules_run_untouched(generator):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
    kept = network[0].weight.data_ptr(), network[0].weight.stride()
    with channels_last(network):
        assert (network[0].weight.data_ptr(), network[0].weight.stride()) == kept
        assert "forward" not in vars(network) | vars(network[0])


def test_a_foreign_part_leaves_all_plain():
    class Shifted(nn.ReLU):
        pass

    vae = models.create("vae", architecture="conv8", latent=2)
    assert is_ours(vae)
    vae.decoder[1] = Shifted()
    assert not is_ours(vae)
    with channels_last(vae):
        assert not any("forward" in vars(part) for part in vae.modules())


def test_late_hooks_see_their_layers(generator):
    network, seen = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()), []
    with torch.no_grad(), frozen(network), laid_out(network):
        for layer in network:
            layer.register_forward_hook(lambda _, __, out: seen.append(out))
        network(torch.rand(8, 2, 6, 6, generator=generator))
    assert [float(out.min()) < 0 for out in seen] == [True, False]


def test_overlapping_threads_restore_once():
    vae = models.create("vae", architecture="conv8", latent=2).train()
    kept = [p.data_ptr() for p in vae.parameters()]
    first, second = ExitStack(), ExitStack()
    for stack in (first, second):
        stack.enter_context(frozen(vae))
        stack.enter_context(channels_last(vae))
    first.close()  # the first to end takes nothing from the second
    assert not vae.training and not any(p.requires_grad for p in vae.parameters())
    assert any("forward" in vars(part) for part in vae.modules())
    second.close()
    assert all(part.training for part in vae.modules())
    assert all(p.requires_grad for p in vae.parameters())
    assert not any("forward" in vars(part) for part in vae.modules())
    assert [p.data_ptr() for p in vae.parameters()] == kept


def test_two_threads_attack_one_model(generator):
    vae = models.create("vae", architecture="conv8", latent=2)
    x = torch.rand(8, 1, 8, 8, generator=generator)
    attack = Attack(MaximumDamage(), ProjectedAscent(steps=5, restarts=2), Ball("l2", 0.5))

    def run(_):
        return attack(Victim(vae), x, generator=seeding.generator(1)).score

    alone = run(0)
    with ThreadPoolExecutor(2) as pool:
        for score in pool.map(run, range(4)):
            assert_close(score, alone)


ARCHITECTURE_SHAPES = [
    (name, (channels, size, size))
    for name, size in (("conv8", 8), ("conv28", 28), ("conv32", 32), ("conv64", 64), ("mlp", 8))
    for channels in (1, 3)
]


@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize(("architecture", "shape"), ARCHITECTURE_SHAPES)
def test_small_chunks_keep_draws(architecture, shape, chunk, generator):
    """Color decoders once returned memory that no `.view` could read."""
    vae = models.create("vae", architecture=architecture, latent=2, image_shape=shape)
    x = torch.rand(2, *shape, generator=generator)
    distances = [
        displacements(
            Victim(vae), x, x, "centered", generator=seeding.generator(1), draws=5, chunk=rows
        )
        for rows in (chunk, None)
    ]
    assert distances[0].shape == distances[1].shape
    assert distances[0].isfinite().all()

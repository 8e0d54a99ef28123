"""Layers of a hierarchy: the bottom of a DLGM, all of a Seatbelt, some groups of an NVAE."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from robustvae import errors
from robustvae.attacks import Attack, LatentShift, LatentTarget, LayerShift
from robustvae.attacks.goals.layer_shift import _weight
from robustvae.defenses import Victim
from robustvae.models import create
from robustvae.models.base import VAE
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.seeding import generator, rand, randn
from robustvae.testing import linear_vae

like = torch.zeros(0, dtype=torch.float64)
SMALL = {"image_shape": (1, 8, 8)}
HIERARCHY = SMALL | {"widths": [4, 3, 2], "hidden": [16], "between": [8], "activation": "tanh"}
MODELS = {
    "dlgm": HIERARCHY,
    "seatbelt": HIERARCHY,
    "nvae": SMALL | {"channels": 4, "groups": [1, 2], "latent_channels": 1},
}
CHOICES = [("dlgm", (0,)), ("seatbelt", (0, 1, 2)), ("seatbelt", (2,)), ("nvae", (2, 0))]


def model(name: str) -> VAE:
    torch.random.default_generator.set_state(generator(5).get_state())
    return create(name, **MODELS[name]).double().eval()


@pytest.fixture
def x() -> Tensor:
    return rand(3, 1, 8, 8, like=like, generator=generator(1))


def by_layer(vae: VAE, x: Tensor, y: Tensor) -> dict[str, list[Tensor]]:
    """Each layer's part of each divergence, from torch's own formulas."""
    sides = [
        [
            Normal(mean, stddev)
            for mean, stddev in zip(
                q.mean.split(vae.widths, 1), q.stddev.split(vae.widths, 1), strict=True
            )
        ]
        for q in (vae.encode(y), vae.encode(x))
    ]
    pairs = list(zip(*sides, strict=True))
    forward = [kl_divergence(p, q).sum(1) for p, q in pairs]
    reverse = [kl_divergence(q, p).sum(1) for p, q in pairs]
    means = [(p.mean - q.mean).square().sum(1) for p, q in pairs]
    spreads = [(p.stddev - q.stddev).square().sum(1) for p, q in pairs]
    return {
        "kl": forward,
        "reverse_kl": reverse,
        "symmetric_kl": [(a + b) / 2 for a, b in zip(forward, reverse, strict=True)],
        "means": means,
        "wasserstein2": [a + b for a, b in zip(means, spreads, strict=True)],
        "latent": means,
    }


@pytest.mark.parametrize(("name", "layers"), [*CHOICES, ("dlgm", None), ("nvae", None)])
def test_divergence_is_sum_over_layers_named(name, layers, x):
    vae = model(name)
    y, rows = (
        (x + 0.2 * randn(*x.shape, like=x, generator=generator(2))).clamp(0, 1),
        torch.arange(3),
    )
    g = generator(0)
    for divergence, parts in by_layer(vae, x, y).items():
        wanted = sum(parts[layer] for layer in (layers or range(len(parts))))
        shift = LatentShift(divergence, layers).bind(Victim(vae), x, generator=g)
        torch.testing.assert_close(shift(y, rows), wanted)
        target = LatentTarget(x, divergence, layers).bind(Victim(vae), y, generator=g)
        torch.testing.assert_close(target(y, rows), -wanted)
        assert (wanted > 1e-6).all()


def test_lowest_layer_ignores_upper_links(x):
    vae = model("dlgm")
    y, rows = x.roll(1, 0), torch.arange(3)

    def scores() -> tuple[Tensor, Tensor]:
        return tuple(
            LatentShift(layers=layers).bind(Victim(vae), x, generator=generator(0))(y, rows)
            for layers in ((0,), None)
        )

    bottom, every = scores()
    with torch.no_grad():
        for weight in vae.up.parameters():
            weight.mul_(1.5)
    again, other = scores()
    torch.testing.assert_close(again, bottom)
    assert (other - every).abs().min() > 1e-3


@pytest.mark.parametrize(("name", "layers"), CHOICES)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_attack_on_some_layers_moves_most(name, layers, norm, x):
    """Further than an attack on the other layers does, where there are others."""
    vae, ball = model(name), Ball(norm, 0.5 if norm == "l2" else 0.1)
    others = tuple(sorted(set(range(3)) - set(layers))) or layers
    search = ProjectedAscent(steps=15, restarts=2)
    found, astray = (
        Attack(LatentShift("means", which), search, ball)(Victim(vae), x, generator=generator(0))
        for which in (layers, others)
    )
    assert found.status == ("ok",) * 3 and ball.contains(x, found.x_adv).all()
    goal = Attack(LatentShift("means", layers), search, ball)
    reached = goal.score(Victim(vae), x, astray.x_adv, generator=generator(1))
    assert (found.score >= reached * (1 - 1e-9)).all()
    if others != layers:
        assert (found.score > 1.01 * reached).any()
    parts = by_layer(vae, x, found.x_adv)["means"]
    torch.testing.assert_close(found.score, sum(parts[layer] for layer in layers))


@pytest.mark.parametrize("layers", [(), (0, 0), (-1,), (0.5,), 0, [0], ("top",)])
def test_layers_that_are_none_are_refused(layers):
    for make in (LatentShift, lambda **k: LatentTarget(torch.zeros(1, 1, 8, 8), **k)):
        with pytest.raises(errors.RobustVAEError):
            make(layers=layers)


def test_layers_not_there_refused(x):
    with pytest.raises(errors.RangeError, match=r"0\.\.2"):
        LatentShift(layers=(3,)).bind(Victim(model("dlgm")), x, generator=generator(0))


def layer(vae: VAE) -> str:
    """The first convolution or dense layer of the encoder."""
    return next(name for name, part in vae.named_modules() if hasattr(part, "weight"))


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("times", ["nothing", "latent", "output"])
def test_layer_shift_is_its_definition(distance, times, x):
    """The named layer's own output, called by hand, beside codes and outputs."""
    vae = model("dlgm")
    name, y, rows = layer(vae), x.roll(1, 0), torch.arange(3)
    goal = LayerShift((name,), distance, times)
    value = goal.bind(Victim(vae), x, generator=generator(0))(y, rows)
    part, seen = dict(vae.named_modules())[name], []
    handle = part.register_forward_hook(lambda module, args, output: seen.append(output.flatten(1)))
    with torch.no_grad():
        codes = [vae.encode(images).mean for images in (x, y)]
        outputs = [vae.decode(code).mean.flatten(1) for code in codes]
    handle.remove()
    if distance == "l2":
        wanted = (seen[0] - seen[1]).norm(dim=1)
    else:
        wanted = 1 - torch.cosine_similarity(seen[0], seen[1])
    factor = {"nothing": (torch.zeros(3, 1), torch.ones(3, 1)), "latent": codes, "output": outputs}
    wanted = wanted * (factor[times][0] - factor[times][1]).norm(dim=1)
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)
    assert not any(part._forward_hooks for part in vae.modules())


def test_condition_weighs_layers():
    """A layer with condition number 51 counts 0.49, one that is singular nothing."""
    first, last = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    with torch.no_grad():
        first.weight.copy_(torch.diag(torch.tensor([51.0, 1.0])))
        last.weight.copy_(torch.diag(torch.tensor([1.0, 0.0])))
    assert [_weight(first), _weight(last)] == pytest.approx([0.49, 0.0])


def test_layer_shift_says_which_layers(x):
    vae = model("dlgm")
    with pytest.raises(errors.UnknownNameError, match="layer 'nowhere'"):
        LayerShift(("nowhere",)).bind(Victim(vae), x, generator=generator(0))
    functions, _, _ = linear_vae()
    with pytest.raises(errors.UnsupportedError, match="no modules with weights"):
        LayerShift().bind(Victim(functions), x[..., :4, :4], generator=generator(0))


def test_layer_attack_restores_vanishing_gradient(x):
    """Behind a layer of scale 1e-20 float32 sees no gradient; at the layer before it does."""
    vae = create("vae", architecture="mlp", latent=3, hidden=[16], image_shape=(1, 8, 8), seed=3)
    vae = vae.float()
    weights = [part for part in vae.modules() if isinstance(part, torch.nn.Linear)]
    with torch.no_grad():
        weights[1].weight.mul_(1e-30)
    victim, search = Victim(vae), ProjectedAscent(steps=10, restarts=2)
    small = x.float()
    ball = Ball("l2", 0.5)
    blind = Attack(LatentShift("means"), search, ball)(victim, small, generator=generator(0))
    seeing = Attack(LayerShift((layer(vae),)), search, ball)(victim, small, generator=generator(0))
    assert blind.status == ("inconclusive",) * 3
    assert seeing.status == ("ok",) * 3 and (seeing.score > 0.05).all()

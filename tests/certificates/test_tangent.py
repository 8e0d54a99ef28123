"""The tangent envelope: no latent within its reach moves the output by r, and its lemmas."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from robustvae import bounds, errors
from robustvae.certificates import certify, multipliers, tangent, tangent_reach
from robustvae.models import create
from robustvae.models.lipschitz import Scale
from robustvae.models.sorts import GroupSort, MaxMin


def decoder(activation, *, latent=3, hidden=(16, 12), pixels=20, gain=4.0, generator=None):
    sort = {"groupsort": GroupSort, "maxmin": MaxMin}[activation]
    widths, layers = [latent, *hidden, pixels], []
    for fan_in, fan_out in itertools.pairwise(widths):
        linear = nn.Linear(fan_in, fan_out)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(fan_out, fan_in, generator=generator) / fan_in**0.5)
            linear.bias.copy_(torch.randn(fan_out, generator=generator))
        layers += [linear, Scale(gain ** (1 / 3)), sort()]
    return nn.Sequential(*layers[:-1])


def pushed(network, z, reach, generator, steps=60, restarts=20):
    """The largest ||s(y(z')) - s(y(z))|| that gradients find with ||z' - z|| <= reach, (B,)."""
    clean = torch.sigmoid(network(z)).detach()
    move = torch.randn(restarts, *z.shape, generator=generator)
    radius = reach[None, :, None]
    best = torch.zeros(len(z))
    for step in range(steps):
        move = radius * move / move.norm(dim=2, keepdim=True).clamp_min(1e-30)
        move.requires_grad_(True)
        size = (torch.sigmoid(network(z + move)) - clean).square().sum(2)
        best = torch.maximum(best, size.detach().amax(0))
        (grad,) = torch.autograd.grad(size.sum(), move)
        grad = grad / grad.norm(dim=2, keepdim=True).clamp_min(1e-30)
        move = move.detach() + (1 - step / steps) * radius * grad
    return best.sqrt()


@pytest.mark.parametrize("activation", ["groupsort", "maxmin"])
@pytest.mark.parametrize("gain", [1.0, 8.0, 60.0])
def test_reach_keeps_output_within_tolerance(activation, gain, generator):
    network = decoder(activation, gain=gain, generator=generator)
    z = torch.randn(10, 3, generator=generator)
    for r in (0.3, 1.0, 2.5):
        reach = tangent_reach(network, z, r)
        assert (pushed(network, z, reach, generator) <= r).all()


def test_reach_never_below_unconstrained_envelope(generator):
    network = decoder("groupsort", hidden=(32, 32), pixels=60, gain=30.0, generator=generator)
    z = torch.randn(12, 3, generator=generator)
    norm = math.prod(stage.norm for stage in tangent._stages(network))
    free = bounds.envelope_reach(network(z), 2.0) / norm
    reach = tangent_reach(network, z, 2.0)
    assert (reach >= free * (1 - 1e-9)).all()
    assert (reach / free).mean() > 1.1


@pytest.mark.parametrize("activation", ["groupsort", "maxmin"])
def test_any_multipliers_bound_the_movement(activation, generator):
    """price ||e||^2 + tilt . e of every move within reach, tilts of all sizes."""
    network = decoder(activation, generator=generator)
    stages = tangent._stages(network)
    z = torch.randn(300, 3, generator=generator)
    pairs, logits = tangent._center(stages, z)
    assert_close(logits, network(z))
    size = torch.logspace(-2, 2, 300)
    tilt = size[:, None] * torch.randn(300, 20, generator=generator)
    price = torch.rand(300, generator=generator) + 0.01
    reach = 3 * torch.rand(300, generator=generator)
    most = tangent._followed(stages, pairs, tilt, price, reach)
    value = torch.full((300,), -math.inf)
    for _ in range(200):
        move = torch.randn(z.shape, generator=generator)
        share = torch.rand(300, 1, generator=generator) ** 0.3
        move = share * reach[:, None] * move / move.norm(dim=1, keepdim=True)
        e = network(z + move) - network(z)
        value = torch.maximum(value, price * e.square().sum(1) + (tilt * e).sum(1))
    assert (value <= most).all()
    assert (value > 0.25 * most).any()


def test_sorts_pay_for_swapped_pairs(generator):
    """|z + 0.1| + |z - 0.1| is flat at 0 and grows beyond 0.1: unpaid, the bound is broken."""
    network = nn.Sequential(nn.Linear(1, 4), GroupSort(), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]))
        network[0].bias.copy_(torch.tensor([0.1, -0.1, -0.1, 0.1]))
        network[2].weight.copy_(torch.eye(4))
    z, move = torch.zeros(1, 1), torch.ones(1, 1)
    stages = tangent._stages(network)
    pairs, _ = tangent._center(stages, z)
    tilt, price, reach = torch.tensor([[-1.0, 1.0, -1.0, 1.0]]), torch.tensor([0.01]), torch.ones(1)
    e = network(z + move) - network(z)
    value = price * e.square().sum(1) + (tilt * e).sum(1)
    assert value <= tangent._followed(stages, pairs, tilt, price, reach) < 1.2 * value
    unpaid = [tangent.Pairs(p.apart, p.sign, 0 * p.steepness) for p in pairs]
    assert value > 2 * tangent._followed(stages, unpaid, tilt, price, reach)


def test_excess_is_the_maximum_from_above(generator):
    logits = 6 * torch.randn(6, 30, generator=generator)
    tilt = 0.1 * torch.randn(6, 30, generator=generator)
    price = torch.tensor([0.001, 0.005, 0.02, 0.06, 0.1, 1.0])
    found = tangent._excess(logits, tilt, price)
    e = torch.linspace(-150, 150, 300_001)
    for i in range(6):
        exact = torch.zeros(())
        for y, n in zip(logits[i], tilt[i], strict=True):
            f = (torch.sigmoid(y + e) - torch.sigmoid(y)).square()
            exact = exact + (f - price[i] * e.square() - n * e).amax().clamp_min(0)
        assert exact - 1e-9 <= found[i] <= exact + 30 * 2e-4


def test_certify_takes_it_where_it_applies(generator):
    make = {"latent": 3, "image_shape": (1, 4, 4), "hidden": [16, 16]}
    vae = create("lipschitz-vae", encoder_lipschitz=2.0, decoder_lipschitz=12.0, **make)
    x = torch.rand(5, 1, 4, 4, generator=generator)
    ask = {"r": 1.0, "m": 0.5, "generator": generator}
    free = certify(vae, x, displacement="centered", methods=["envelope"], **ask)
    best = certify(vae, x, displacement="centered", **ask)
    assert (best.radius >= free.radius).all() and (best.radius > free.radius).any()
    assert any(method.startswith("tangent") for method in best.method)
    paired = certify(vae, x, displacement="paired", **ask)
    assert not any(method.startswith("tangent") for method in paired.method)


def test_other_layers_are_refused_by_name():
    z = torch.zeros(1, 2)
    with pytest.raises(errors.UnsupportedError, match="ReLU"):
        tangent_reach(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), z, 1.0)
    with pytest.raises(errors.UnsupportedError, match="without a sort"):
        tangent_reach(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), z, 1.0)
    with pytest.raises(errors.UnsupportedError, match="end in a dense"):
        tangent_reach(nn.Sequential(nn.Linear(2, 2), GroupSort()), z, 1.0)
    with pytest.raises(errors.ShapeError):
        tangent_reach(nn.Linear(3, 2), z, 1.0)
    with pytest.raises(errors.RangeError):
        tangent_reach(nn.Linear(2, 2), z, 0.0)


@pytest.mark.parametrize("activation", ["groupsort", "maxmin"])
def test_search_follows_the_bound(activation, generator):
    """Its value and slopes, written by hand for float32, are those of the bound by autograd."""
    network = decoder(activation, generator=generator)
    stages, z = tangent._stages(network), torch.randn(40, 3, generator=generator)
    pairs, logits = tangent._center(stages, z)
    single = [multipliers.Pairs(*(part.float() for part in vars(p).values())) for p in pairs]
    reach = 0.1 + torch.rand(40, generator=generator)
    search = multipliers.Search(stages)
    r = torch.full((40,), 1.0).float()
    state = multipliers._State(search, single, logits.float(), reach.float(), r)
    tilt = 0.3 * torch.randn(logits.shape, generator=generator)
    price = 0.01 + 0.1 * torch.rand(40, generator=generator)
    state.tilt, state.price = tilt.float(), price.float()
    tilt.requires_grad_(True), price.requires_grad_(True)
    bound = tangent._followed(stages, pairs, tilt, price, reach)
    slopes = torch.autograd.grad(bound.sum(), [tilt, price])
    value, *found = state._followed()
    assert_close(value.double(), bound.detach(), rtol=1e-5, atol=1e-5)
    for one, other in zip(found, slopes, strict=True):
        assert_close(one.double(), other, rtol=1e-3, atol=1e-4)
    # of the logits' part: what the rigorous bound has, from above
    excess, slope, _ = state._excess(0)
    assert (excess.double() <= tangent._excess(logits, tilt.detach(), price.detach()) + 1e-4).all()
    ends = []
    for sign in (1, -1):
        state.tilt = (tilt.detach() + 0.01 * sign * slope / slope.norm(dim=1, keepdim=True)).float()
        ends.append(state._excess(0)[0])
    rises = torch.isclose(ends[0] - ends[1], 0.02 * slope.norm(dim=1), rtol=0.1, atol=1e-3)
    assert rises.double().mean() > 0.9  # but for the few that change their move between


def test_rows_alone_as_in_batches(generator):
    """To the bit: else an input's radius would depend on its neighbors."""
    for hidden, pixels in (((32, 32), 60), ((10, 14), 21), ((8,), 5)):
        network = decoder("groupsort", hidden=hidden, pixels=pixels, generator=generator)
        z = torch.randn(37, 3, generator=generator)
        stages = tangent._stages(network)
        pairs, logits = tangent._center(stages, z)
        search, ones = multipliers.Search(stages), torch.ones(37)

        def found(rows, search=search, pairs=pairs, logits=logits, ones=ones):
            of_rows = [multipliers.Pairs(p.apart[rows], p.sign[rows], p.steepness) for p in pairs]
            return search(of_rows, logits[rows], 0.1 * ones[rows], ones[rows], 10)

        everyone = found(torch.arange(37))
        for rows in (torch.tensor([0]), torch.tensor([36]), torch.arange(36, 3, -1)):
            for part, same in zip(found(rows), everyone, strict=True):
                assert (part == same[rows]).all()


@pytest.mark.parametrize("factor", [1e-40, 1e-8, 1e3, 1e25, 1e60])
def test_weights_beyond_float32(factor, generator):
    """Never below the free envelope, never broken: also where the search in float32 overflows."""
    network = decoder("groupsort", generator=generator)
    with torch.no_grad():
        network[0].weight.mul_(factor)
    z = torch.randn(4, 3, generator=generator)
    norm = math.prod(stage.norm for stage in tangent._stages(network))
    for r in (1e-3, 1.0, 4.0):
        reach = tangent_reach(network, z, r)
        free = bounds.envelope_reach(network(z), r) / norm
        assert (reach >= free * (1 - 1e-9)).all() and reach.isfinite().all()
        assert (pushed(network, z, reach, generator, 10, 5) <= r).all()

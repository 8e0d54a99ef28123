"""Neyman-Pearson in latent space (ours): any decoder, linear bounds on how the posterior moves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from robustvae import bounds, gate
from robustvae.certificates.methods.base import (
    ROWS_AT_ONCE,
    SILENT,
    Finding,
    Task,
    clean_probability,
)
from robustvae.certificates.methods.lipschitz import check_own_posterior
from robustvae.certificates.movement import (
    Encoder,
    Movement,
    Rounding,
    first,
    largest_radius,
)
from robustvae.certificates.networks import composition_of, exact_copy
from robustvae.certificates.propagation import METHODS, Method
from robustvae.certificates.question import Question
from robustvae.certificates.rounding import Arithmetic, unit_of
from robustvae.defenses import Victim
from robustvae.defenses.independence import check_batch, check_rows_alone
from robustvae.errors import UnsupportedError
from robustvae.loops import loop
from robustvae.metrics import clopper_pearson
from robustvae.registry import register
from robustvae.seeding import draw

# Of what may be spent, the share that rounding may take before the statement is made of the model
# evaluated in float64 instead: beyond a quarter more is lost than float32 is worth.
_AFFORDED = 0.25

# inputs whose bounds are propagated together
_AT_ONCE = 16

# of the second search, which begins next to its end
_STEPS = 2


@register("certificate-method", "neyman_pearson")
@final
@dataclass(frozen=True)
class NeymanPearson:
    """Any decoder: what happens at the clean input goes on while the posterior moves little (ours).

    The bound's name says how the encoder was bounded, "crown" or what it fell back to.
    """

    kind: ClassVar[str] = "probabilistic"
    norms: ClassVar[tuple[str, ...]] = ("l2", "linf")

    def __call__(self, task: Task) -> Finding:
        """Radii at which the lemma keeps the event of the clean draws."""
        check_own_posterior(task)
        vae, ask = task.vae, task.question
        exact = exact_copy(vae)
        unit_of(vae.dtype, vae.device)
        gate.is_known_model(vae)
        is_fixed = composition_of(exact, decoder=False).spread.is_constant
        encoder = Encoder(exact, spread=not (is_fixed or ask.displacement == "centered"))
        points = (encoder.posterior(task.x.to("cpu", torch.float64)).stddev <= 0).any(1)
        if bool(points.any()):
            return self._beside(points, task)
        local, wide = Arithmetic(vae.dtype), Arithmetic(torch.float64)
        images = task.x.to("cpu", torch.float64)
        # decided before any draw, and for each input alone
        upper, _ = clopper_pearson(task.draws or 1000, task.draws or 1000, task.confidence, sides=1)
        best = bounds.neyman_pearson_shift(float(upper), ask.m)
        losses = torch.cat(
            [
                _losses(encoder, part, best.expand(len(part)), local, ask).shift
                for part in images.split(_AT_ONCE)
            ]
        )
        proofs = losses <= _AFFORDED * best
        _check_rounding(task, encoder, local)
        failure = torch.zeros(2, len(images), dtype=torch.float64)
        double = replace(task, victim=Victim(exact), x=images)
        for rows, questions in ((proofs, task), (~proofs, double)):
            if bool(rows.any()):
                failure[:, rows] = _failure(_only(questions, rows))
        parts = []
        for rows, arithmetic in ((proofs, local), (~proofs, wide)):
            parts += [
                (i, _radius(encoder, images[i], failure[:, i], arithmetic, ask))
                for i in rows.nonzero()[:, 0].split(_AT_ONCE)
                if len(i)
            ]
        method = min((part.method for _, part in parts), key=METHODS.index)
        radii = torch.zeros(2, len(images), dtype=torch.float64)
        for i, part in parts:
            radii[:, i] = part.radii
        name = str(vae.dtype).removeprefix("torch.")
        assumptions: tuple[str, ...] = (
            "the stored weights in evaluation mode, in exact arithmetic",
            f"{task.draws or 1000} draws at the clean input, from float64 normals; confidence "
            f"{task.confidence:g} for each input",
        )
        if bool(proofs.any()):
            assumptions += (
                f"sums of {name} products in any order, without TF32, bfloat16, Winograd or "
                f"Fourier transforms, move a latent by at most {float(losses[proofs].max()):.1e} "
                "standard deviations; as much is taken off",
            )
        if not bool(proofs.all()):
            assumptions += (
                f"{int((~proofs).sum())} of {len(images)} inputs: of the model evaluated in "
                f"float64, since the bound on what {name} does to a latent, "
                f"{float(losses[~proofs].max()):.1e} standard deviations, is too large",
            )
        if ask.displacement == "centered" and not is_fixed:
            assumptions += (SILENT,)
        name = f"neyman_pearson, {method}"
        return Finding({name: radii[0]}, assumptions, simultaneous=radii[1])

    def _beside(self, points: Tensor, task: Task) -> Finding:
        """The finding where some inputs, by a mask, have a coordinate without spread.

        Raises:
            UnsupportedError: All have.
        """
        reason = (
            "a coordinate without spread at the input: what is drawn nearby need never have been "
            "drawn there, so that no probability carries over; use methods=['noncentral'], which "
            "follow the decoder, or rv.InputNoise"
        )
        if bool(points.all()):
            raise UnsupportedError(f"Neyman-Pearson with {reason}")
        others = self(_only(task, ~points))
        assert others.simultaneous is not None
        none = torch.zeros(len(points), dtype=torch.float64)
        return Finding(
            {name: none.masked_scatter(~points, radii) for name, radii in others.radii.items()},
            (
                *others.assumptions,
                f"not covered: {int(points.sum())} of {len(points)} inputs with {reason}",
            ),
            simultaneous=none.masked_scatter(~points, others.simultaneous),
        )


def _failure(task: Task) -> Tensor:
    """Upper bounds on how rarely draws at the inputs are beyond r, (2, B), from independent ones.

    The second ones hold for all inputs together.

    Raises:
        UnsupportedError: The decoder treats a row by its place or the size of its batch: nothing
            else is known of it, and a deployed row is alone.
    """
    vae, (generator, *_) = task.vae, task.generators("rows alone")
    count = max(4, min(task.draws or 1000, ROWS_AT_ONCE))
    z = draw(vae.encode(task.x[:1]), (count,), generator=generator)[:, 0]
    subject = "Neyman-Pearson needs draws of one law, and this decoder"
    check_rows_alone(subject, lambda z: vae.decode(z).mean, z[:4])
    check_batch(subject, lambda z: vae.decode(z).mean, z)
    failure = 1 - task.confidence
    return 1 - clean_probability(task, failure, failure / task.count)


@dataclass(frozen=True)
class _Part:
    """Radii (2, B) of some inputs, alone and for all together, and how the encoder was bounded."""

    radii: Tensor
    method: Method


def _only(task: Task, rows: Tensor) -> Task:
    """The task for some of its inputs, by a mask."""
    numbers = tuple(n for n, choice in zip(task.rows, rows.tolist(), strict=True) if choice)
    images = task.x[rows.to(task.x.device)]
    return replace(task, x=images, rows=numbers, together=task.count)


@dataclass(frozen=True)
class _Losses:
    """What rounding takes.

    Attributes:
        shift: Of a latent, in standard deviations, (B,).
        clean: Of the standard deviations at the input, as a share of each, (B,); below 1.
        ball: Of those in the ball.
        linear: Radii at which the linear bounds at a point would spend the budget, (B,).
        upper: Radii up to which it is bounded, half as far again: none beyond is asked for, (B,).
    """

    shift: Tensor
    clean: Tensor
    ball: Rounding
    linear: Tensor
    upper: Tensor


def _losses(
    encoder: Encoder, x: Tensor, budget: Tensor, arithmetic: Arithmetic, ask: Question
) -> _Losses:
    """What rounding takes where so many standard deviations may be spent, (B,)."""
    stddev = encoder.posterior(x).stddev
    small = torch.full((len(x),), 1e-6, dtype=torch.float64)
    slope = encoder.over(x, small, norm=ask.norm, box=ask.box).length((1 + bounds.SLACK) / stddev)
    linear = small * budget / slope
    upper = 1.5 * linear
    sides = x[0].numel() ** 0.5 if ask.norm == "linf" else 1.0
    ball = encoder.rounding(x, upper * sides, arithmetic)
    clean = encoder.rounding(x, torch.zeros_like(upper), arithmetic)
    least = stddev.amin(1)
    share = clean.share + clean.plus / least
    # a clean spread that is off by a share changes its unit by as much
    error = (ball.mean + clean.mean) / least * (1 + share) + budget * share
    # of a spread that is off by half of itself too little is known
    error = torch.where(share < 0.5, error, torch.inf)
    return _Losses(error, share.clamp(max=0.5), ball, linear, upper)


def _check_rounding(task: Task, encoder: Encoder, arithmetic: Arithmetic) -> None:
    """Raise on a model whose own evaluation lies further off than rounding can bring it.

    Raises:
        UnsupportedError: It runs otherwise than IEEE arithmetic of its floating type does.
    """
    images = task.x.to("cpu", torch.float64)
    none = torch.zeros(len(images), dtype=torch.float64)
    mean = encoder.posterior(images).mean
    gap = (first(task.vae, task.x, encoder.width).mean.double().cpu() - mean).norm(dim=1)
    # 1e-9: what two float64 evaluations may differ by
    limit = encoder.rounding(images, none, arithmetic).mean + 1e-9 * (1 + mean.norm(dim=1))
    if not bool((gap <= limit).all()):
        raise UnsupportedError(
            f"the encoder in {arithmetic.dtype} lies further from float64 than rounding allows; "
            "look for TF32, bfloat16 or autocast, or use vae.double()"
        )


def _radius(
    encoder: Encoder, x: Tensor, failure: Tensor, arithmetic: Arithmetic, ask: Question
) -> _Part:
    """The largest radii at which Neyman-Pearson keeps the event, each input's and all inputs'.

    `failure`, (2, B), bounds how rarely the event fails at the clean input, for each alone and for
    all together, which is the larger number.
    """
    with loop(f"radius {arithmetic.dtype}", x, failure) as place:
        if place.result is None:
            part = _searched_radius(encoder, x, failure, arithmetic, ask)
            place.finish(part.radii, part.method)
    return _Part(*place.result)


def _searched_radius(
    encoder: Encoder, x: Tensor, failure: Tensor, arithmetic: Arithmetic, ask: Question
) -> _Part:
    stddev = encoder.posterior(x).stddev
    possible = failure < 1 - ask.m
    failure = torch.where(possible, failure, (1 - ask.m) / 2)
    budget = bounds.neyman_pearson_shift(1 - failure, ask.m)
    # of the larger budget, which rounding spends more of
    losses = _losses(encoder, x, budget[0], arithmetic, ask)
    error, linear, upper = losses.shift, losses.linear, losses.upper
    budget = budget - error
    possible &= budget > 0
    budget = torch.where(possible, budget, 1.0)
    limit = (1 - ask.m) * (1 - bounds.CDF_SLACK)
    usage: list[Method] = []

    def moved(radius: Tensor) -> tuple[Movement, Tensor]:
        result = encoder.over(x, radius, norm=ask.norm, box=ask.box)
        usage.append(result.method)
        return result, result.length((1 + bounds.SLACK) / stddev)

    def share(radius: Tensor, which: int) -> Tensor:
        result, shift = moved(radius)
        if not encoder.spread:
            return shift / budget[which]
        # in units of what the spread at the input is computed as
        least = losses.ball.below(result.least) / (1 + losses.clean[:, None])
        uppers = losses.ball.above(result.most) / (1 - losses.clean[:, None])
        before = failure[which]
        after = bounds.moved_failure(before, shift + error, stddev, least, uppers)
        cost = ((after / before).log() / (limit / before).log()).clamp_min(0).sqrt()
        # at a failure of 1 the share has reached its end and says nothing of how far off it is
        failures = torch.where(after < 1, cost.clamp_min(1.0 + 1e-9), torch.inf)
        return torch.where(after <= limit, cost.clamp(max=1.0), failures)

    radius = largest_radius(lambda rho: share(rho, 0), linear / 4, upper) * possible[0]
    together = radius
    if bool((failure[1] > failure[0]).any()):
        # begun where a budget that grows with the radius would end
        near = radius * budget[1] / budget[0]
        start = torch.where(near > 0, near, linear / 4)
        top = torch.where(radius > 0, radius, upper)
        together = largest_radius(lambda rho: share(rho, 1), start, top, steps=_STEPS)
        together = torch.minimum(together * possible[1], radius)
    return _Part(torch.stack([radius, together]), min(usage, key=METHODS.index))

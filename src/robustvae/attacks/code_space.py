"""An attack on defenses that look for a mode: it chooses the code first and the image for it after.

Whoever may move a pixel by e against a defense that forgives R can offer any code whose picture
lies within e + R of the input. So the search runs over codes z: it lowers the similarity of g(z)
to the clean output while the energy of z, at the image made for it, stays below that of the clean
code; that image is the projection of g(z) on the ball. The best images are then followed in pixel
space: between two steps the mode moves little, so a few preconditioned steps from where it was
find it again, and the gradient flows through those steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from robustvae.attacks.adaptive import target_gradient
from robustvae.attacks.goals.metric_drop import similarity_stand_in
from robustvae.defenses import Victim, fisher, seeks_mode
from robustvae.errors import UnsupportedError, check_count, check_positive
from robustvae.loops import loop
from robustvae.mcmc import Target
from robustvae.metrics import default_variant
from robustvae.models.base import VAE
from robustvae.perturb import Ball, Score, SearchResult
from robustvae.registry import register
from robustvae.seeding import RowGenerator, by_row, randn

_STRONG = 30.0  # price of a nat by which the clean code is the better one, in log-similarity
_RESERVE = 2.0  # nats by which the chosen code should be the better one: the search is not exact
_CANDIDATES = 3  # images of each start that the defense itself judges
_DAMPING = 1e-3  # of the mean curvature, where the Fisher matrix is nearly singular


@register("search", "code-space")
@final
@dataclass(frozen=True)
class CodeSpace:
    """Search over codes, then track the mode: for victims whose defense looks for one.

    Args:
        steps: Steps of Adam over codes for each start.
        starts: Starts: near the clean code, at the codes of images that the model itself makes,
            half-way to them. An input's starts follow from its own number alone.
        tracked: Signed (l-infinity) or normalized (l2) steps in pixel space that follow the mode.
        unrolled: Preconditioned steps by which the mode is found again after each of them.
        rate: First step of Adam, in latent units.

    Raises:
        RangeError: A count below 1 (`tracked` below 0), or a rate that is not positive.
        UnsupportedError: When pointed at a victim whose defense is not a mode search.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 8, 8))
        >>> victim = rv.Victim(vae, rv.RobustPosterior("linf", 0.1, steps=5))
        >>> search = rv.attacks.CodeSpace(steps=3, starts=2, tracked=1)
        >>> attack = rv.Attack(rv.MetricDrop(center="mean"), search, rv.Ball("linf", 0.1))
        >>> attack(victim, torch.rand(2, 1, 8, 8), generator=rv.generator(0)).x_adv.shape
        torch.Size([2, 1, 8, 8])
    """

    steps: int = 40
    starts: int = 4
    tracked: int = 20
    unrolled: int = 10
    rate: float = 0.1

    def __post_init__(self) -> None:
        """Validate the fields."""
        for name in ("steps", "starts", "unrolled"):
            check_count(getattr(self, name), name)
        check_count(self.tracked, "tracked", least=0)
        check_positive(self.rate, "rate")

    def __call__(
        self, score: Score, x: Tensor, ball: Ball, *, generator: torch.Generator
    ) -> SearchResult:
        """Never: a score alone does not show the codes that this searches.

        Raises:
            UnsupportedError: Always; an `Attack` aims it at its victim first.
        """
        raise UnsupportedError("code-space needs the victim: use it in an Attack")

    def aim(self, victim: Victim) -> tuple[Victim, _CodeSearch]:
        """The victim as it is, and the search that knows its defense."""
        if not seeks_mode(victim.defense):
            raise UnsupportedError(
                f"code-space: {type(victim.defense).__name__} looks for no mode; use it on "
                "RobustPosterior or PosteriorMode"
            )
        return victim, _CodeSearch(self, victim)


@dataclass(frozen=True)
class _CodeSearch:
    spec: CodeSpace
    victim: Victim

    def __call__(
        self, score: Score, x: Tensor, ball: Ball, *, generator: torch.Generator
    ) -> SearchResult:
        """Look around each of `x`; restarts are kept by the reported score."""
        vae, streams = self.victim.vae, by_row(generator, "codes", x)
        everyone = torch.arange(len(x), device=x.device)
        judge: Score = getattr(score, "reported", score)
        with torch.no_grad():
            clean_code = self.victim.latent(x, generator=streams)
            clean = vae.decode(vae.encode(x).mean).mean
            best = x.clone()
            highest = judge(x, everyone)
        slope = torch.zeros_like(highest)
        queries = torch.ones_like(everyone)
        with loop(repr(self.spec), x, clean_code) as place:
            if place.content is not None:  # of a run that was stopped
                best, highest, slope, queries, states = place.content
                streams.set_state(states.cpu())
            for start in range(place.begin, self.spec.starts):
                if place.is_kept:
                    place.at(start, best, highest, slope, queries, streams.get_state())
                z = self._start(start, clean_code, streams)
                images, norm = self._climb(x, ball, z, clean_code, clean)
                slope = torch.maximum(slope, norm)
                queries = queries + self.spec.steps + len(images)
                for y in images:
                    best, highest = _better(judge, y, everyone, best, highest)
        if self.spec.tracked:
            for y in self._track(x, ball, best, clean, streams):
                best, highest = _better(judge, y, everyone, best, highest)
                queries = queries + 1
            queries = queries + self.spec.tracked * (1 + self.spec.unrolled)
        return SearchResult(best, highest, slope, torch.zeros_like(slope), queries)

    def _start(self, number: int, clean: Tensor, streams: RowGenerator) -> Tensor:
        """Codes to begin from: noise about the clean one, then those of other images, or half-way.

        The other images are the model's own, decoded draws of the prior, each input's by its own
        stream: codes of other inputs of the batch would make a row depend on its neighbors.
        """
        noise = randn(*clean.shape, like=clean, generator=streams)
        if number == 0:
            return clean + 0.3 * noise
        vae = self.victim.vae
        with torch.no_grad():
            other = vae.encode(vae.decode(noise).mean.clamp(0, 1)).mean
        return other if number % 2 else 0.5 * (other + clean)

    def _target(self, y: Tensor) -> Target:
        defense: Any = self.victim.defense
        target: Target = defense.target(self.victim.vae, y)
        return target

    def _climb(
        self, x: Tensor, ball: Ball, z: Tensor, clean_code: Tensor, clean: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Adam over codes; the images of the codes that differ most among those that win."""
        vae, spec, variant = self.victim.vae, self.spec, default_variant(x)
        z = z.detach().clone().requires_grad_()
        first, second = torch.zeros_like(z), torch.zeros_like(z)
        images, values, slope = [], [], torch.zeros_like(z[:, 0])
        for step in range(spec.steps):
            with torch.enable_grad():
                picture = vae.decode(z).mean
                with torch.no_grad():
                    y = ball.project(x, picture)
                target = self._target(y)
                # how much better the clean code explains the image that was made for z
                behind = target(clean_code).detach() - target(z)
                similarity = similarity_stand_in(picture.clamp(0, 1), clean.clamp(0, 1), variant)
                loss = similarity + _STRONG * (behind + _RESERVE).relu() / x[0].numel()
                (gradient,) = torch.autograd.grad(loss.sum(), z)
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
            slope = torch.maximum(slope, gradient.norm(dim=1))
            images.append(y)
            values.append(torch.where(behind <= 0, similarity, similarity + 100 + behind).detach())
            first = 0.9 * first + 0.1 * gradient
            second = 0.99 * second + 0.01 * gradient.square()
            unit = (
                first
                / (1 - 0.9 ** (step + 1))
                / ((second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8)
            )
            rate = spec.rate * (1 - 0.9 * step / spec.steps)
            z = (z - rate * unit).detach().requires_grad_()
        order = torch.stack(values).argsort(0)
        stack, rows = torch.stack(images), torch.arange(len(x), device=x.device)
        return [stack[order[k], rows] for k in range(min(_CANDIDATES, len(images)))], slope

    def _track(
        self, x: Tensor, ball: Ball, y: Tensor, clean: Tensor, streams: RowGenerator
    ) -> list[Tensor]:
        """Steps in pixel space that follow the mode; every fifth image and the last."""
        vae, spec, variant = self.victim.vae, self.spec, default_variant(x)
        with torch.no_grad():
            z = self.victim.latent(y, generator=streams)
        result, reach = [], ball.radii(x).view(-1, *(1,) * (x.ndim - 1))
        inverse = _inverse_fisher(vae, z)
        for step in range(spec.tracked):
            if step % 5 == 0:
                inverse = _inverse_fisher(vae, z)
            at = y.detach().requires_grad_()
            with torch.enable_grad():
                target, code = self._target(at), z.detach().requires_grad_()
                for _ in range(spec.unrolled):
                    slope = target_gradient(target, code)
                    code = code + 0.5 * (inverse @ slope.unsqueeze(2)).squeeze(2)
                picture = vae.decode(code).mean.clamp(0, 1)
                loss = similarity_stand_in(picture, clean.clamp(0, 1), variant)
                (gradient,) = torch.autograd.grad(loss.sum(), at)
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
            shift = code.detach()
            z = torch.where(shift.isfinite().all(1, keepdim=True), shift, z)
            length = gradient.flatten(1).norm(dim=1).clamp_min(1e-30).view_as(reach)
            unit = gradient.sign() if ball.norm == "linf" else gradient / length
            rate = 0.25 * (1 - step / spec.tracked)
            y = ball.project(x, y - rate * reach * unit)
            if step % 5 == 4 or step == spec.tracked - 1:
                result.append(y)
        return result


def _better(
    judge: Score, y: Tensor, rows: Tensor, best: Tensor, highest: Tensor
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        value = judge(y, rows).nan_to_num(-torch.inf)
    higher = value > highest
    best = torch.where(higher.view(-1, *(1,) * (y.ndim - 1)), y, best)
    return best, torch.where(higher, value, highest)


def _inverse_fisher(vae: VAE, z: Tensor) -> Tensor:
    precision = fisher(vae, z.detach())
    scale = precision.diagonal(dim1=1, dim2=2).mean(1).view(-1, 1, 1)
    eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    return torch.linalg.inv(precision + _DAMPING * scale * eye)

"""Latents from the posterior given one image: the encoder's, a sample of the true one, its mode."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from robustvae.arguments import checked_fields
from robustvae.defenses.climb import Climbing, Gradient, Method, check_search, climb
from robustvae.defenses.defense import CHAINS, Cost, Defense, in_chunks, ready
from robustvae.defenses.targets import (
    check_ball,
    check_floor,
    driven_by,
    fisher_scale,
    in_bfloat16,
    posterior,
    target_of,
)
from robustvae.errors import (
    ConfigError,
    check_choice,
    check_count,
    check_positive,
    check_probability,
    check_type,
)
from robustvae.mcmc import (
    Adaptation,
    BatchWide,
    Chain,
    Diagnosis,
    DualAveraging,
    FixedStep,
    Kernel,
    PerChain,
    Plateau,
    Target,
    diagnose,
    hmc,
    hmc_to_plateau,
    langevin,
    mass_matrix,
)
from robustvae.mcmc.hmc import check_jitter
from robustvae.models.base import VAE, evaluating
from robustvae.perturb import Ball
from robustvae.registry import build_fields, lookup, names, register
from robustvae.seeding import draw

_ADAPTATIONS: dict[str, Callable[..., Adaptation]] = {
    "chain": PerChain,
    "dual": DualAveraging,
    "paper": BatchWide,
}


def _adaptation(name: str, acceptance: float) -> Adaptation:
    """The adaptation of a short word, a registered name or `package.module:Name`."""
    if not isinstance(name, str):
        check_choice("adaptation", name, (*_ADAPTATIONS, *names("adaptation")))
    kind = _ADAPTATIONS.get(name) or lookup("adaptation", name)
    has_target = "acceptance" in inspect.signature(kind).parameters
    value: Adaptation = kind(acceptance=acceptance) if has_target else kind()
    return value


@register("defense", "posterior-mean")
@final
@dataclass(frozen=True)
class PosteriorMean:
    """The mean of the encoder's posterior: no defense, and the usual way to read a VAE.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> rv.PosteriorMean()(vae, torch.rand(3, 1, 4, 4), generator=rv.generator(0)).shape
        torch.Size([3, 2])
    """

    is_random: ClassVar[bool] = False
    reads_encoder_mean: ClassVar[bool] = True
    cost: ClassVar[Cost] = Cost()

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""
        check_type(vae, "vae", VAE)
        with evaluating(vae):
            return vae.encode(x).mean


@register("defense", "posterior-sample")
@final
@dataclass(frozen=True)
class PosteriorSample:
    """One draw from the encoder's posterior, or the mean of several.

    Args:
        draws: How many draws are averaged.

    Raises:
        RangeError: `draws` is not positive.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> rv.PosteriorSample()(vae, torch.rand(3, 1, 4, 4), generator=rv.generator(0)).shape
        torch.Size([3, 2])
    """

    draws: int = 1

    is_random: ClassVar[bool] = True
    reads_encoder_mean: ClassVar[bool] = True
    cost: ClassVar[Cost] = Cost()

    def __post_init__(self) -> None:
        """Validate the arguments."""
        check_count(self.draws, "draws")

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""
        check_type(vae, "vae", VAE)
        with evaluating(vae):
            return draw(vae.encode(x), (self.draws,), generator=generator).mean(0)


@register("defense", "hmc")
@final
@dataclass(frozen=True)
class HMC:
    """The end of a Hamiltonian Monte Carlo run on each image's posterior, from a posterior draw.

    Its cost is 1 + steps x n_leapfrog gradients an image. [Kuzina22] used (on MNIST) steps=500
    after 250 more to burn in, n_leapfrog=20, adapt="paper", and its published code floor=1e-5.

    Args:
        steps: Transitions, those that adapt the step size included.
        step_size: First step size.
        n_leapfrog: Leapfrog steps of a transition.
        adapt: How step sizes are steered: "chain" (`mcmc.PerChain`), "dual"
            (`mcmc.DualAveraging`), "paper" (`mcmc.BatchWide`) or None (`mcmc.FixedStep`), each
            towards `acceptance`; or such a value itself.
        ball: Sample the robust posterior of this ball, or the plain one where it is None.
        start: The defense whose latent the chains start from; a posterior draw where it is None.
        mass: Mass matrix: "identity", "encoder" (the posterior's spread at the image), or
            "fisher" (prior precision + the decoder's Fisher information at the posterior mean,
            for d more products; a constant in gradients by the image).
        average: Read the mean of the positions after the warm-up, not the last one.
        plateau: Transitions of a block, after each of which the chains that have reached their
            plateau leave the batch (see `robustvae.mcmc.hmc_to_plateau`); `steps` is then the most
            that a chain runs. None runs all of them for every chain.
        force: "exact", or "bfloat16": trajectories driven by a copy of the model in that type,
            each accepted or refused by the energies of the model itself, so that the target stays
            the same. Attacks that differentiate the chain see the exact force.
        chunk: Images run at once.
        acceptance: Mean acceptance probability that `adapt` steers towards, in (0, 1). The less,
            the longer the steps: a short chain from a start far off gets further at 0.5. Without
            adaptation it is not looked at.
        jitter: In [0, 1): each transition's step sizes are multiplied by a number drawn uniformly
            from [1 - jitter, 1 + jitter], against trajectories that close on themselves.
        floor: Cut a Bernoulli likelihood's probabilities to [floor, 1 - floor], in (0, 0.5), for
            the chain alone: see `posterior`. None takes them as they are.

    Raises:
        RangeError: A count or step size that is not positive, or such an `acceptance`, `jitter` or
            `floor`.
        UnknownNameError: An unknown `adapt`, `mass` or `force`.
        ConfigError: Options that contradict `plateau`, or `floor` with a `ball`.
        UnsupportedError: When called, where the model has no weights that bfloat16 could hold, or
            `floor` with another likelihood than Bernoulli.

    References:
        [Kuzina22] section 3 and Algorithm 1; Girolami & Calderhead, 2011, section 5 (Fisher).

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> rv.HMC(steps=3)(vae, torch.rand(3, 1, 4, 4), generator=rv.generator(0)).shape
        torch.Size([3, 2])
    """

    steps: int = 100
    step_size: float = 0.1
    n_leapfrog: int = 5
    adapt: Adaptation | str | None = "chain"
    ball: Ball | None = None
    start: Defense | None = None
    mass: Literal["identity", "encoder", "fisher"] = "identity"
    average: bool = False
    plateau: int | None = None
    force: Literal["exact", "bfloat16"] = "exact"
    chunk: int = 100
    acceptance: float = 0.9
    jitter: float = 0.0
    floor: float | None = None

    is_random: ClassVar[bool] = True
    reads_encoder_mean: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Validate the arguments."""
        check_count(self.steps, "steps")
        check_count(self.n_leapfrog, "n_leapfrog")
        check_count(self.chunk, "chunk")
        check_positive(self.step_size, "step_size")
        check_probability(self.acceptance, "acceptance")
        check_jitter(self.jitter)
        check_ball(self.ball)
        check_floor(self.floor)
        if self.floor is not None and self.ball is not None:
            raise ConfigError("the robust posterior of a ball has no floor: give one of the two")
        check_choice("mass matrix", self.mass, ("identity", "encoder", "fisher"))
        if not (self.adapt is None or isinstance(self.adapt, Adaptation)):
            _adaptation(self.adapt, self.acceptance)  # raises where no such name is known
        check_choice("force", self.force, ("exact", "bfloat16"))
        if self.start is not None:
            build_fields(self, start="defense")
        if self.plateau is not None:
            check_count(self.plateau, "plateau")
            options = (self.adapt, self.average, self.force, self.acceptance, self.jitter)
            if options != ("chain", False, "exact", 0.9, 0):
                raise ConfigError(
                    "plateau wants adapt='chain', acceptance 0.9, no average, no jitter and the "
                    "exact force"
                )

    @property
    def adaptation(self) -> Adaptation:
        """How step sizes are steered, as a value."""
        if isinstance(self.adapt, Adaptation):
            return self.adapt
        if self.adapt is None:
            return FixedStep()
        return _adaptation(self.adapt, self.acceptance)

    def kernel(self, scale: Tensor | None = None, *, graph: bool = False) -> Kernel:
        """How a transition is made.

        Args:
            scale: Square root of each image's inverse mass matrix: see `scale`.
            graph: Keep the graph through the run.
        """
        mass = mass_matrix(scale)
        return Kernel(self.step_size, self.n_leapfrog, mass, jitter=self.jitter, graph=graph)

    @property
    def gradients(self) -> int:
        """Gradient evaluations spent on each image, the start's included; the most, by `plateau`.

        With `plateau` each block also costs the gradient at its start.
        """
        count = 1 + self.steps * self.n_leapfrog
        if self.plateau is not None:
            count = max(1, self.steps // self.plateau) * (1 + self.plateau * self.n_leapfrog)
        return count + getattr(self.start, "gradients", 0)

    @property
    def cost(self) -> Cost:
        """What one image takes."""
        return Cost(self.gradients, 1)

    def run(
        self,
        vae: VAE,
        x: Tensor,
        *,
        keep: bool | None = None,
        graph: bool = False,
        generator: torch.Generator,
    ) -> Chain:
        """All steps of every chain on one chunk of images, (B, C, H, W), with the diagnostics.

        `plateau` is not looked at. `keep` keeps the positions after the warm-up; where it is None
        they are kept if `average` wants them.
        """
        with self._driver(vae) as low, ready(vae, x):
            return self._run(vae, x, low, self.average if keep is None else keep, graph, generator)

    def diagnose(
        self, vae: VAE, x: Tensor, *, chains: int = 4, generator: torch.Generator
    ) -> Diagnosis:
        """Run `chains` chains on each image of (B, C, H, W) and say how far to trust them.

        Raises:
            ShapeError: Fewer than 4 transitions after the warm-up.
            RangeError: `chains` is not positive.

        Examples:
            >>> import robustvae as rv, torch
            >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
            >>> diagnosis = rv.HMC(steps=40).diagnose(
            ...     vae, torch.rand(3, 1, 4, 4), generator=rv.generator(0)
            ... )
            >>> diagnosis.divergences
            tensor([0, 0, 0])
        """
        check_count(chains, "chains")
        with torch.no_grad(), self._driver(vae) as low, ready(vae, x):
            many = x.repeat(chains, 1, 1, 1)
            return diagnose(self._run(vae, many, low, True, False, generator), chains)

    def settle(
        self, vae: VAE, x: Tensor, *, graph: bool = False, generator: torch.Generator
    ) -> Plateau:
        """The run on one chunk of images, (B, C, H, W), that chains leave at their plateau."""
        with ready(vae, x):
            return self._settle(vae, x, graph, generator)

    def _settle(self, vae: VAE, x: Tensor, graph: bool, generator: torch.Generator) -> Plateau:
        return hmc_to_plateau(
            self.density(vae, x),
            self.begin(vae, x, generator=generator),
            self.kernel(self.scale(vae, x), graph=graph),
            steps=self.steps,
            block=self.plateau or 5,
            generator=generator,
        )

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""

        with self._driver(vae) as low:

            def read(part: Tensor, graph: bool, generator: torch.Generator) -> Tensor:
                if self.plateau is not None:
                    return self._settle(vae, part, graph, generator).z
                chain = self._run(vae, part, low, self.average, graph, generator)
                return chain.z if chain.draws is None else chain.draws.mean(0)

            return in_chunks(read, vae, x, self.chunk, generator, least=CHAINS)

    def _run(
        self,
        vae: VAE,
        x: Tensor,
        low: VAE | None,
        keep: bool,
        graph: bool,
        generator: torch.Generator,
    ) -> Chain:
        start = self.begin(vae, x, generator=generator)
        kernel = self.kernel(self.scale(vae, x), graph=graph)
        if low is not None and not graph:
            kernel = replace(kernel, force=driven_by(low, x, self.ball, self.floor))
        return hmc(
            self.density(vae, x),
            start,
            kernel,
            steps=self.steps,
            adaptation=self.adaptation,
            keep=keep,
            generator=generator,
        )

    def density(self, vae: VAE, x: Tensor) -> Target:
        """What the chains sample: latents (B, d) to log densities (B,), of images (B, C, H, W)."""
        return target_of(vae, x, self.ball, self.floor)

    def begin(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Where the chains start: latents, (B, d), of one chunk of images, (B, C, H, W)."""
        start = PosteriorSample() if self.start is None else self.start
        return start(vae, x, generator=generator)

    def scale(self, vae: VAE, x: Tensor) -> Tensor | None:
        """The square root of each image's inverse mass matrix, (B, d) or (B, d, d), or None."""
        if self.mass == "identity":
            return None
        with evaluating(vae):
            q = vae.encode(x)
        return q.stddev if self.mass == "encoder" else fisher_scale(vae, q.mean)

    def _driver(self, vae: VAE) -> contextlib.AbstractContextManager[VAE | None]:
        return in_bfloat16(vae) if self.force == "bfloat16" else contextlib.nullcontext()


@checked_fields
@register("defense", "langevin")
@final
@dataclass(frozen=True)
class Langevin:
    """The end of a Langevin run on each image's posterior: one gradient a transition.

    Args:
        steps: Transitions.
        step_size: First step size.
        adjust: Metropolis-adjusted, the step size adapted per chain (MALA); otherwise neither.
        ball: Sample the robust posterior of this ball, or the plain one where it is None.
        chunk: Images run at once.

    Raises:
        RangeError: A count or step size that is not positive.

    References:
        Roberts & Rosenthal, 1998.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.defenses import Langevin
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> Langevin(steps=3)(vae, torch.rand(3, 1, 4, 4), generator=rv.generator(0)).shape
        torch.Size([3, 2])
    """

    steps: int = 200
    step_size: float = 0.1
    adjust: bool = True
    ball: Ball | None = None
    chunk: int = 100

    is_random: ClassVar[bool] = True
    reads_encoder_mean: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Validate the arguments."""
        check_count(self.steps, "steps")
        check_count(self.chunk, "chunk")
        check_positive(self.step_size, "step_size")
        check_ball(self.ball)

    @property
    def gradients(self) -> int:
        """Gradient evaluations spent on each image."""
        return 1 + self.steps

    @property
    def cost(self) -> Cost:
        """What one image takes."""
        return Cost(self.gradients, 1)

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""

        def read(part: Tensor, graph: bool, generator: torch.Generator) -> Tensor:
            return langevin(
                target_of(vae, part, self.ball),
                draw(vae.encode(part), generator=generator),
                Kernel(self.step_size, adjust=self.adjust, graph=graph),
                steps=self.steps,
                generator=generator,
            ).z

        return in_chunks(read, vae, x, self.chunk, generator, least=CHAINS)


@register("defense", "posterior-mode")
@final
@dataclass(frozen=True)
class PosteriorMode(Climbing):
    """The mode of each image's posterior, as far as a search gets.

    An attack chooses where the encoder's mean is, and with it the mode that a search from there
    ends in. Draws of the prior are out of its reach: where the posterior has several modes, a few
    short searches from them find the clean one more often, for the same gradients.

    Args:
        steps: Gradient evaluations an image, shared by the starts.
        rate: First step length of Adam, in latent units.
        gradient: How an attack sees through it: "unrolled" differentiates the search itself,
            "implicit" the mode (see `robustvae.mcmc.implicit`).
        chunk: Images run at once.
        method: "adam"; "lbfgs"; or "gauss-newton", damped, whose steps each cost a Fisher matrix
            (d forward products of the decoder) besides the gradient. Attacks see through the last
            two by gradient="implicit" only. All move every layer of a hierarchy at once.
        start: "mean" climbs from the encoder's mean; "prior" from `starts` draws of the prior,
            three quarters of the steps shared equally among them, then from the best end with the
            last quarter (what does not divide is not spent). Such short searches want a longer
            `rate`, about 0.4.
        starts: How many draws of the prior.

    Raises:
        RangeError: A setting that is not positive, or fewer steps than the starts need.
        UnknownNameError: An unknown `gradient`, `method` or `start`.
        UnsupportedError: When called for a gradient, "unrolled" with another method than "adam".

    References:
        [Kuzina22] appendix B.3.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> rv.PosteriorMode(steps=3)(vae, torch.rand(3, 1, 4, 4), generator=rv.generator(0)).shape
        torch.Size([3, 2])
    """

    steps: int = 100
    rate: float = 0.1
    gradient: Gradient = "unrolled"
    chunk: int = 100
    method: Method = "adam"
    start: Literal["mean", "prior"] = "mean"
    starts: int = 10

    reads_encoder_mean: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Validate the arguments."""
        check_choice("start", self.start, ("mean", "prior"))
        check_search(self)

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""

        def read(part: Tensor, graph: bool, generator: torch.Generator) -> Tensor:
            mean, target = vae.encode(part).mean, self.target(vae, part)
            return climb(self, vae, target, mean, graph=graph, generator=generator)

        return in_chunks(read, vae, x, self.chunk, generator)

    def target(self, vae: VAE, x: Tensor) -> Target:
        """The posterior of each of the images `x`, (B, C, H, W), whose mode is looked for."""
        return posterior(vae, x)

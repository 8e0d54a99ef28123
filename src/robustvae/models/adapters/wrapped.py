"""A `VAE` around a stranger's code, which runs as it is."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from robustvae import gate
from robustvae.arguments import checked_fields
from robustvae.data.space import InputSpace
from robustvae.errors import ModelError, RangeError, RobustVAEError, ShapeError, UnsupportedError
from robustvae.models.adapters.parts import reached, rebound
from robustvae.models.adapters.paths import DecoderPath, EncoderPath
from robustvae.models.adapters.reading import (
    CodeReading,
    Pick,
    Reshaped,
    SpreadKind,
    as_distribution,
    flattened,
    is_distribution,
    pair_of,
    picked,
    stddev_of,
)
from robustvae.models.base import VAE, evaluating
from robustvae.models.composition import Paths, SpreadRule
from robustvae.models.likelihoods import Bernoulli, Distribution, Gaussian, Laplace, PointMass

NO_LIKELIHOOD = (
    "no likelihood is stated for this model, so what needs one (HMC, robust posterior, ELBO) is "
    "left out: state it with wrap(..., likelihood='bernoulli'), or likelihood='gaussian', "
    "stddev='fit', fit_on=x"
)
HALF = (torch.float16, torch.bfloat16)
_LOG_2PI = 1.8378770664093453
_EDGE = 1e-6  # probabilities of 0 and 1 have no logit: float32 keeps 1 - 1e-6 apart from 1


@final
@dataclass(frozen=True)
class Output:
    """How a decoder's output becomes a distribution over images.

    Attributes:
        reconstruction: Where the tensor is; None where the output is a distribution.
        likelihood: "bernoulli", "gaussian", "laplace" or None.
        stddev: Of "gaussian", or sqrt(2) times the scale of "laplace", in [0, 1] units.
        is_logits: Whether the tensor holds log odds.
        pair: What the second of two returned tensors is, where the decoder gives its own spread.
    """

    reconstruction: Pick | None = None
    likelihood: str | None = None
    stddev: float | None = None
    is_logits: bool = False
    pair: SpreadKind | None = None


@final
@dataclass(frozen=True)
class Match:
    """What an adapter recognized in a model.

    Attributes:
        recognized: In words: the attribute or output that decided.
        encode: What the model reads, (B, *space.shape), to anything.
        decode: Codes (B, *code_shape) to anything.
        code_shape: Shape of one code, as the model has it.
        code: How the encoder's output is read.
        output: How the decoder's output is read.
        space: What the model reads; None for what `wrap` was told.
        prior: Distribution of shape (d,), None for the standard normal.
        prior_missing: Why nothing is known of the prior; empty where something is.
        decisions: What the model decides on codes, such as the entries of a codebook; or None.
        is_straight_through: Whether gradients pass a rounding that has none.
        assumptions: What was assumed, in sentences.
        draws_in_vain: Whether calls may draw random numbers that nothing read of them depends on,
            as a forward pass does whose mean alone is read.
        no_trace: Why its calls cannot be read layer by layer; empty where they may be.
    """

    recognized: str
    encode: Callable[[Tensor], Any]
    decode: Callable[[Tensor], Any]
    code_shape: tuple[int, ...]
    code: CodeReading = field(default_factory=CodeReading)
    output: Output = field(default_factory=Output)
    space: InputSpace | None = None
    prior: Any = None
    prior_missing: str = ""
    decisions: Callable[[Tensor], Tensor] | None = None
    is_straight_through: bool = False
    assumptions: tuple[str, ...] = ()
    draws_in_vain: bool = False
    no_trace: str = ""


@contextlib.contextmanager
def user_call(name: str, function: Any, x: Tensor) -> Iterator[None]:
    """Within: the user's code; what it raises comes out as `ModelError`, with its cause.

    Args:
        name: Of the call: "encode", "decode" or "forward".
        function: What is called, for the message.
        x: What it is given, for the message.
    """
    try:
        yield
    except RobustVAEError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        line = " ".join(str(error).split())[:200]
        what = getattr(function, "__qualname__", type(function).__name__)
        raise ModelError(
            f"{name} of the wrapped model ({what}) raised {type(error).__name__} on an input of "
            f"shape {tuple(x.shape)} and {x.dtype}: {line}; if the shape or range is not what it "
            "reads, give image_shape=, latent= or pixels="
        ) from error


class Foreign(VAE):
    """A stranger's model: in half precision it reads and writes float32."""

    is_foreign = True

    @property
    def module_dtype(self) -> torch.dtype | None:
        """Floating type of the parameters; None where there are none."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), None)

    def _check_dtype(self, value: Tensor, name: str) -> None:
        # functions without parameters have no type of their own to hold a tensor to, and half
        # precision is read and written in float32
        if self.module_dtype is not None and self.module_dtype not in HALF:
            super()._check_dtype(value, name)

    @property
    def dtype(self) -> torch.dtype:
        """Of the images that the model is given: its parameters', float32 for half precision."""
        return torch.float32 if self.module_dtype in HALF else super().dtype

    def _cast(self, value: Tensor) -> Tensor:
        return value.to(self.module_dtype) if self.module_dtype in HALF else value


@gate.know_model
@checked_fields
@final
class WrappedVAE(Foreign):
    """A `VAE` around a user's functions or module; made by `wrap`.

    Attributes:
        space: What the model reads; inside the library inputs are images in [0, 1].
        recognized: What `wrap` matched, in words.
        unseen: What may hold weights and could not be found, in words.
        assumptions: What was assumed, in sentences.
    """

    def __init__(self, match: Match, space: InputSpace) -> None:
        """Keep the match; `wrap` has checked it."""
        super().__init__()
        self.space = space
        self.image_shape = space.image_shape
        self.latent = math.prod(match.code_shape)
        self.recognized = match.recognized
        self.assumptions = match.assumptions
        self._match = match
        self._encode = match.encode
        self._decode = match.decode
        reach = reached(match.encode, match.decode, match.decisions, match.prior)
        # submodules, so that evaluation mode, checks of weights, hashes and .to() reach them
        self._owners = nn.ModuleList(reach.modules)
        # adding a submodule does not change its mode, and the whole is in the mode of its parts
        self.training = self._owners.training = any(part.training for part in reach.modules)
        self.unseen = tuple(dict.fromkeys(reach.unseen))

    def __repr__(self) -> str:
        return (
            f"WrappedVAE({self.recognized}; images {self.image_shape}, latent {self.latent}, "
            f"likelihood {self.likelihood})"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> WrappedVAE:
        owners = _copied(self._owners, memo)
        twin = WrappedVAE.__new__(WrappedVAE)
        nn.Module.__init__(twin)
        memo[id(self)] = twin
        match = replace(
            self._match,
            encode=_twin(self._encode, memo),
            decode=_twin(self._decode, memo),
            decisions=None if self._match.decisions is None else _twin(self._match.decisions, memo),
        )
        twin.space, twin.image_shape, twin.latent = self.space, self.image_shape, self.latent
        twin.recognized, twin.assumptions = self.recognized, self.assumptions
        twin.unseen = self.unseen
        twin._match, twin._encode, twin._decode = match, match.encode, match.decode
        twin._owners = owners
        twin.training = self.training
        return twin

    @property
    def kind(self) -> str:
        """The class of the module inside, for the record."""
        kinds = [type(owner) for owner in self._owners.modules()]
        foreign = (
            kind
            for kind in kinds
            if kind is not nn.ModuleList and not kind.__module__.startswith("robustvae.")
        )
        return next(foreign, type(self)).__name__

    @property
    def likelihood(self) -> str | None:
        """The likelihood that was stated, or None; "given" where the decoder returns one."""
        if self._match.output.reconstruction is None:
            return "given"
        return self._match.output.likelihood

    @property
    def is_straight_through(self) -> bool:
        """Whether gradients pass a rounding that has none."""
        return self._match.is_straight_through

    @property
    def has_spread(self) -> bool:
        """Whether codes have a spread of their own."""
        return self._match.code.mean is None or self._match.code.spread is not None

    def paths(self) -> Paths:
        """The user's calls with what is read of them, as modules that a trace can read.

        Raises:
            UnsupportedError: A reading that is not a tensor's: distributions, variances, half
                precision.
        """
        code, output = self._match.code, self._match.output
        if self._match.no_trace:
            raise UnsupportedError(self._match.no_trace)
        rules: dict[SpreadKind, SpreadRule] = {
            "log_var": "log_var",
            "log_stddev": "log_stddev",
            "stddev": "stddev",
        }
        if code.mean is None or code.spread is None or code.kind not in rules:
            raise UnsupportedError(
                "bounds by the weights want a wrapped encoder that gives a mean and a log-variance "
                "or a standard deviation as tensors; use methods=['smoothing']"
            )
        if not self._has_wide_spread():
            raise UnsupportedError(
                "bounds by the weights want a spread for each number of the code, got one for "
                "several; use methods=['smoothing']"
            )
        if self.module_dtype in HALF:
            raise UnsupportedError(
                f"bounds by the weights want float32 or float64, got {self.module_dtype}; "
                "use methods=['smoothing'], or convert the module"
            )
        is_probability = output.likelihood == "bernoulli" and not output.is_logits
        return Paths(
            EncoderPath(self._encode, self._owners, self.space, code),
            DecoderPath(self._decode, self._owners, self.space, self._match),
            rules[code.kind],
            is_probability,
            2 * _EDGE if is_probability else 0.0,
        )

    @torch.no_grad()
    def _has_wide_spread(self) -> bool:
        """Whether the encoder gives as many spreads as means."""
        zeros = torch.zeros(1, *self.image_shape, dtype=self.dtype, device=self.device)
        with evaluating(self), torch.random.fork_rng(devices=[]):
            output, code = self.call_encode(zeros), self._match.code
        if code.mean is None or code.spread is None:
            return False
        mean, spread = (picked(output, pick, "encode") for pick in (code.mean, code.spread))
        return mean.numel() == spread.numel()

    @property
    def dtype(self) -> torch.dtype:
        """Of the images that the model is given: its parameters', float32 for half precision."""
        return self._readable if self.module_dtype is None else super().dtype

    @functools.cached_property
    def _readable(self) -> torch.dtype:
        default = torch.get_default_dtype()
        for dtype in (default, torch.float64, torch.float32):
            with contextlib.suppress(Exception), torch.no_grad():
                self._encode(self.space.to_model(torch.full((1, *self.image_shape), 0.5).to(dtype)))
                return dtype
        return default

    def encode(self, x: Tensor) -> Distribution:
        """q(z | x), (B, d)."""
        self.check(x)
        return self._match.code.read(self.call_encode(x), x, self.latent)

    def call_encode(self, x: Tensor) -> Any:
        """What the user's encoder returns for images in [0, 1], (B, C, H, W), as it is."""
        u = self._cast(self.space.to_model(x))
        with user_call("encode", self._encode, u), self._random_state():
            return self._encode(u)

    @contextlib.contextmanager
    def _random_state(self) -> Iterator[None]:
        """Within: a call whose draws nobody reads; the global random state comes back after it."""
        if self.training or not self._match.draws_in_vain:
            yield
            return
        state = torch.get_rng_state()
        try:
            yield
        finally:
            torch.set_rng_state(state)

    def decode(self, z: Tensor) -> Distribution:
        """p(x | z), (B, C, H, W)."""
        output, shape = self._match.output, (len(z), *self.image_shape)
        result = self.call_decode(z)
        if output.pair is not None and isinstance(result, tuple | list):
            result = self._gaussian(result, shape, z, output.pair)
        is_tensor = isinstance(result, Tensor)
        if is_distribution(result) or (output.reconstruction is None and not is_tensor):
            return _in_unit(as_distribution(result, shape, "decode"), self.space)
        u = flattened(picked(result, output.reconstruction or (), "decode"), shape, "decode", z)
        return likelihood_of(u, output, self.space)

    def _gaussian(self, made: Any, shape: tuple[int, ...], z: Tensor, kind: SpreadKind) -> Gaussian:
        """A decoder's pair (mean, spread), in the model's unit."""
        mean, part = pair_of(made, "decode", kind)
        spread = part.expand_as(mean) if part.numel() == 1 else part
        return Gaussian(
            flattened(mean, shape, "decode", z),
            stddev_of(flattened(spread, shape, "decode", z), kind),
        )

    def call_decode(self, z: Tensor) -> Any:
        """What the user's decoder returns for codes (B, d), as it is."""
        codes = z.reshape(len(z), *self._match.code_shape).clone(
            memory_format=torch.contiguous_format
        )
        codes = self._cast(codes)
        with user_call("decode", self._decode, codes):
            return self._decode(codes)

    def forward_gap(self, x: Tensor) -> tuple[float, float] | None:
        """How far forward passes of a module are from their own codes, decoded.

        Args:
            x: Images in [0, 1], (B, C, H, W).

        Returns:
            Greatest difference and what rounding explains, relative to the largest output; None of
            models whose decoder is a part by itself.
        """
        gap = getattr(self._decode, "gap", None)
        if gap is None:
            return None
        one, other = gap(self._cast(self.space.to_model(x)), self.encode(x))
        return float(one), float(other)

    def decisions(self, z: Tensor) -> Tensor:
        """What the model decides on codes (B, d), such as the entries of a codebook, (B, n).

        Raises:
            UnsupportedError: The model decides nothing.
        """
        if self._match.decisions is None:
            raise UnsupportedError("this model makes no decisions: its codes are continuous")
        return self._match.decisions(self._cast(z.reshape(len(z), *self._match.code_shape)))

    def prior(self) -> Distribution:
        """The prior that was given or found; the standard normal where nothing else is known.

        Raises:
            UnsupportedError: The model has a prior of its own that has no density here.
        """
        if self._match.prior_missing:
            zeros = torch.zeros(self.latent, dtype=self.dtype, device=self.device)
            return PointMass(zeros, self._match.prior_missing)
        if self._match.prior is None:
            return super().prior()
        return as_distribution(self._match.prior, (self.latent,), "prior")

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z) + log p(z) in nats, (B,)."""
        if self._match.prior is not None or self._match.prior_missing:
            return super().log_joint(x, z)
        self.check(x)
        self.check_latent(z, len(x))
        likelihood = self.decode(z).log_prob(x).flatten(1).sum(1)
        return likelihood - 0.5 * (z.square() + _LOG_2PI).sum(1)


@gate.know_model
@checked_fields
@final
class BlackBox(Foreign):
    """A model of which only the output can be judged: its "latent" is the input itself.

    Attributes:
        space: What the module reads.
        recognized: What `wrap` matched, in words.
    """

    output_only = True
    has_spread = False
    likelihood = None
    is_straight_through = False

    def __init__(
        self,
        forward: Callable[[Tensor], Any],
        pick: Pick,
        space: InputSpace,
        recognized: str,
        reason: str = "",
    ) -> None:
        """Keep the function; `wrap` has tried it, and `reason` says why its code is not read."""
        super().__init__()
        self.space, self.image_shape = space, space.image_shape
        self.latent = math.prod(space.shape)
        self.recognized = recognized
        self.assumptions = (f"only the output of the model is judged{': ' * bool(reason)}{reason}",)
        self._forward, self._pick, self._reason = forward, pick, reason
        reach = reached(forward)
        self._owners = nn.ModuleList(reach.modules)
        # adding a submodule does not change its mode, and the whole is in the mode of its parts
        self.training = self._owners.training = any(part.training for part in reach.modules)
        self.unseen = tuple(dict.fromkeys(reach.unseen))

    def __repr__(self) -> str:
        return f"BlackBox({self.recognized}; images {self.image_shape})"

    def __deepcopy__(self, memo: dict[int, Any]) -> BlackBox:
        _copied(self._owners, memo)
        forward = _twin(self._forward, memo)
        return BlackBox(forward, self._pick, self.space, self.recognized, self._reason)

    @property
    def kind(self) -> str:
        """The class of the module inside, for the record."""
        owner = next(iter(self._owners), None)
        return type(self).__name__ if owner is None else type(owner).__name__

    def encode(self, x: Tensor) -> PointMass:
        """The input itself, flat, (B, D)."""
        self.check(x)
        return PointMass(x.flatten(1), ONLY_OUTPUT)

    def decode(self, z: Tensor) -> PointMass:
        """What the module makes of the input, of the library's shape or another (B, a, b, c)."""
        u = self._cast(self.space.to_model(z.reshape(len(z), *self.image_shape)))
        with user_call("forward", self._forward, u):
            result = self._forward(u)
        value = picked(result, self._pick, "forward")
        if len(value) != len(z) or not value.is_floating_point():
            raise ShapeError(
                f"forward must return {len(z)} rows of floating type, got {tuple(value.shape)} "
                f"of {value.dtype}: say where the output is with reconstruction="
            )
        value = value.to(z.dtype)
        if value[0].numel() == self.latent:
            value = self.space.from_model(value)
        else:  # of four dimensions like images, over the last three of which distances are taken
            shape = value.shape[1:]
            value = value.reshape(len(z), *[1] * (3 - len(shape)), *shape).flatten(1, -3)
        return PointMass(value.contiguous(), ONLY_OUTPUT)

    def paths(self) -> Paths:
        """Raise an error: there is no code between input and output.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(ONLY_OUTPUT)

    def prior(self) -> PointMass:
        """A point without a density."""
        zeros = torch.zeros(self.latent, dtype=self.dtype, device=self.device)
        return PointMass(zeros, ONLY_OUTPUT)


ONLY_OUTPUT = (
    "this model is a black box (output_only): only its output is judged; what reads a code, a "
    "spread or a likelihood is left out. Wrap with encode= and decode= to judge them"
)


def likelihood_of(u: Tensor, output: Output, space: InputSpace) -> Distribution:
    """The stated likelihood around a decoder's tensor, in [0, 1] units.

    Args:
        u: What the decoder returned, in the model's unit, (B, C, H, W).
        output: What was stated.
        space: The model's unit.
    """
    if output.likelihood == "bernoulli":
        if output.is_logits:
            return Bernoulli(u)
        return Bernoulli(torch.logit(_probabilities(u, space).clamp(_EDGE, 1 - _EDGE)))
    mean = torch.sigmoid(u) if output.is_logits else space.from_model(u)
    if output.likelihood is None:
        return PointMass(mean, NO_LIKELIHOOD)
    assert output.stddev is not None
    if output.likelihood == "laplace":
        return Laplace(mean, torch.full_like(mean, output.stddev / math.sqrt(2)))
    return Gaussian(mean, torch.full_like(mean, output.stddev))


def _probabilities(u: Tensor, space: InputSpace) -> Tensor:
    """A decoder's probabilities; outputs of a sigmoid are some whatever range the encoder reads."""
    low, high = (float(edge) for edge in u.detach().aminmax())
    if low >= -_EDGE and high <= 1 + _EDGE:
        return u
    if space.low == 0.0 and space.high == 1.0:
        raise RangeError(
            f"decode must return probabilities in [0, 1], got values from {low:g} to {high:g}: "
            "if they are logits, wrap with outputs='logits'"
        )
    return space.from_model(u)


def _in_unit(distribution: Distribution, space: InputSpace) -> Distribution:
    """A decoder's distribution over what the model reads, as one over images in [0, 1]."""
    if space.low == 0.0 and space.high == 1.0:
        return distribution
    if isinstance(distribution, Bernoulli):  # ones and zeros stand for the range's ends
        return distribution
    if isinstance(distribution, Gaussian):
        mean = space.from_model(distribution.mean)
        return Gaussian(mean, space.spread_from_model(distribution.stddev))
    zero = torch.zeros((1, *space.image_shape), dtype=distribution.mean.dtype)
    low = space.to_model(zero).reshape(zero.shape)
    span = space.to_model(zero + 1).reshape(zero.shape) - low
    return Reshaped(distribution, tuple(distribution.mean.shape), low, span)


def _copied(owners: nn.ModuleList, memo: dict[int, Any]) -> nn.ModuleList:
    """A copy of modules whose weights are leaves, as those of scripted modules would not be."""
    with torch.no_grad():
        twins = copy.deepcopy(owners, memo)
    for one, other in zip(owners.parameters(), twins.parameters(), strict=True):
        other.requires_grad_(one.requires_grad)
    return twins


def _twin(part: Any, memo: dict[int, Any]) -> Any:
    if isinstance(part, nn.Module):
        return copy.deepcopy(part, memo)
    return rebound(part, memo)

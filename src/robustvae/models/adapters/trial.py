"""Trials of a stranger's module: what its calls return, without leaving a trace in it."""

from __future__ import annotations

import contextlib
import functools
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard, final

import numpy as np
import torch
from torch import Tensor, nn

from robustvae.data.space import InputSpace
from robustvae.models.adapters.parts import reached
from robustvae.models.adapters.posteriors import is_sampled, known_form
from robustvae.models.adapters.reading import (
    CodeReading,
    Pick,
    SpreadKind,
    as_wide,
    first_half,
    is_choice,
    is_distribution,
    is_narrow,
    picked,
    places_of,
    second_half,
    stddev_of,
)
from robustvae.models.base import evaluating
from robustvae.seeding import generator, rand, seeded

ROWS = 5  # of a trial: an odd number, which no channel count of a picture is taken for
DRAWS = 64  # of forward passes in `roles`: a standard deviation known to 9 %
LEAST_DRAWS, VALUES = 12, 2**20  # of inputs with many values, which tell as much together
BETTER = 0.5  # an unusual reading must halve the discrepancy of the usual one, or chance decides
FAR = 3.0  # times the error of a mean of draws, which their center is not away from it
ALIKE = 2.0  # ratio of two sums of variances, each from at least 12 draws of few codes
CLOSE = 1e-4  # of two passes through the same layers in float32, relative to the largest output

KINDS: tuple[SpreadKind, ...] = ("log_var", "stddev", "log_stddev", "variance")
MEANS = re.compile(
    r"^(z_?|q_?|qz_?|latent_?|posterior_?|x_?)?(mu|mus|mean|means|loc|embedding)(_?z)?$"
)
SPREADS: tuple[tuple[SpreadKind, re.Pattern[str]], ...] = (
    ("log_var", re.compile(r"log_?(var|variance|covariance|v|sigma_?(sq|2)|cov)|^lv$")),
    ("log_stddev", re.compile(r"log_?(std|stddev|sigma|scale)")),
    ("stddev", re.compile(r"(^|_)(std|stddev|sigma|scale|stds)($|_)")),
    ("variance", re.compile(r"(^|_)(var|variance|covariance)($|_)")),
)
RECONSTRUCTIONS = re.compile(
    r"^(recon.*|x_?hat|x_?rec.*|rec|rec_?x|output|outputs|decoded|x_?tilde|x_?out|sample|y|out)$"
)
LOSSES = re.compile(r"loss|error|residual|(^|_)(nll|bce|mse|kl|kld|mask|target)s?(_|$)")


@contextlib.contextmanager
def quiet(*modules: nn.Module) -> Iterator[None]:
    """Within: evaluation mode, no gradients; afterwards buffers and random states as before."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(evaluating(module))
            stack.enter_context(buffers_kept(module))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.no_grad())
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


@contextlib.contextmanager
def sampling(module: nn.Module) -> Iterator[None]:
    """Within: a stranger's own classes are in training mode, and torch's layers are not.

    Many models draw their code in training mode only; dropout and statistics of batches, which
    would come with it, are mostly layers of torch.
    """
    parts = [p for p in module.modules() if not type(p).__module__.startswith("torch.")]
    modes = [part.training for part in parts]
    try:
        for part in parts:
            part.training = True
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


@contextlib.contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Within: a module's calls; afterwards its buffers are as before."""
    copies = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in copies:
                if buffer.shape == value.shape and not torch.equal(buffer, value):
                    buffer.copy_(value)


@final
@dataclass(frozen=True)
class Trial:
    """A module and the inputs that it is tried on.

    Attributes:
        module: The stranger's.
        x: Inputs as it reads them, (B, *space.shape).
        space: What it reads.
    """

    module: Any
    x: Tensor
    space: InputSpace

    @property
    def draws(self) -> int:
        """Forward passes by which readings are told apart, fewer of large inputs."""
        return max(LEAST_DRAWS, min(DRAWS, VALUES // self.x[0].numel()))

    @property
    def owners(self) -> list[nn.Module]:
        """The modules whose mode and buffers a trial must leave alone."""
        return reached(self.module).modules

    def run(self, function: Callable[[Tensor], Any], value: Tensor, seed: int = 0) -> Any:
        """What a function returns, in evaluation mode; None where it raises anything."""
        with quiet(*self.owners), seeded(seed):
            try:
                return function(value.clone())
            except (Exception, SystemExit):  # a wrong guess may fail in any way
                return None

    def parts(self, names: tuple[str, ...]) -> Iterator[tuple[str, Callable[[Tensor], Any]]]:
        """Methods and submodules of these names, in their order."""
        for name in names:
            part = attribute(self.module, name)
            if callable(part):
                yield name, part

    def is_image(self, value: Any) -> bool:
        """Whether a value has as many numbers a row as an input."""
        return (
            is_dense(value)
            and value.ndim > 1
            and len(value) == len(self.x)
            and value.numel() == self.x.numel()
        )

    def reconstruction(self, output: Any) -> Pick | None:
        """Where in a decoder's or forward's output the reconstruction is."""
        if self.is_image(output):
            return ()
        parts = self.images(output)
        images = list(parts)
        # the input itself is often returned beside the reconstruction
        others = [place for place in images if not self._is_input(parts[place])]
        names = [place for place in others if RECONSTRUCTIONS.match(str(place[-1]).lower())]
        return next(iter(names or others or images), None)

    def images(self, output: Any) -> dict[Pick, Tensor]:
        """The parts of an output that are as large as inputs, but for losses of each element.

        Of a distribution over inputs, its mean.
        """
        parts = {
            place: part
            for place, part in places_of(output).items()
            if not LOSSES.search(str(place[-1]).lower())
        }
        images = {place: part for place, part in parts.items() if self.is_image(part)}
        dists = [place for place, part in parts.items() if is_image_distribution(self, part)]
        return images | {(*place, "mean"): parts[place].mean for place in dists}

    def _is_input(self, value: Tensor) -> bool:
        same = value.reshape(self.x.shape) == self.x
        return bool(same.all())

    def code(
        self,
        encode: Callable[[Tensor], Any],
        decode: Callable[[Tensor], Any] | None,
        reading: CodeReading | None = None,
    ) -> tuple[CodeReading, tuple[int, ...], Pick | None] | None:
        """How an encoder's output is read, the shape of a code, and where the decoder's image is.

        Args:
            encode: Inputs to anything.
            decode: Codes to anything; None where there is none to be tried.
            reading: The one to try, where it is known.
        """
        output = self.run(encode, self.x)
        if output is None:
            return None
        known = iter([reading]) if reading is not None else None
        for reading in known or self.readings(encode, output, decode):
            code = self.mean_of(reading, output)
            if code is None:
                continue
            if decode is None:
                return reading, tuple(code.shape[1:]), None
            # as the library hands codes over, whatever type an encoder under autocast gives
            decoding = self.run(decode, code.to(self.x.dtype))
            pick: Pick | None = ()
            if not is_image_distribution(self, decoding):
                pick = self.reconstruction(decoding)
                if pick is None:
                    continue
            else:
                pick = None
            return reading, tuple(code.shape[1:]), pick
        return None

    def mean_of(self, reading: CodeReading, output: Any) -> Tensor | None:
        """The codes that a reading finds in an output, in the model's own shape."""
        try:
            if reading.mean is None:
                mean: Tensor = known_form(output).mean
            else:
                mean = picked(output, reading.mean, "encode")
                if reading.spread is not None:
                    spread = picked(output, reading.spread, "encode")
                    if as_wide(spread, mean).shape != mean.shape:
                        return None
        except Exception:  # a user's object may raise anything from a property
            return None
        return mean if self.is_rows(mean) else None

    def readings(
        self,
        encode: Callable[[Tensor], Any],
        output: Any,
        decode: Callable[[Tensor], Any] | None,
    ) -> Iterator[CodeReading]:
        """The ways to read codes off an encoder's output, the most likely first.

        Args:
            encode: Inputs to anything.
            output: What it returned.
            decode: Codes to anything; None where there is none to be tried.
        """
        if is_distribution(output):
            if not is_choice(output):
                yield CodeReading()
            return
        if isinstance(output, Tensor):
            yield CodeReading(())
            if output.ndim > 1 and output.shape[1] % 2 == 0:
                yield CodeReading((first_half,), (second_half,), "log_var")
            return
        parts = places_of(output)
        distribution = getattr(output, "latent_dist", None)
        if distribution is not None:
            yield CodeReading(("latent_dist", "mean"), ("latent_dist", "std"), "stddev")
        dists = [place for place, part in parts.items() if is_distribution(part)]
        yield from (CodeReading((*at, "mean"), (*at, "stddev"), "stddev") for at in dists)
        yield from self._by_name(parts)
        if is_sampled(output):
            yield CodeReading()
        again = places_of(self.run(encode, self.x, seed=1))
        rows = {place: part for place, part in parts.items() if self.is_rows(part)}
        steady = [
            place
            for place, part in rows.items()
            if isinstance(again.get(place), Tensor) and torch.equal(part, again[place])
        ]
        codes = [place for place in steady if not self.is_image(parts[place])] or steady
        pairs = [
            (one, other)
            for i, one in enumerate(codes)
            for other in codes[i + 1 :]
            if parts[one].shape == parts[other].shape
        ]
        for one, other in pairs:
            yield self.roles(encode, output, (one, other), decode)
        yield from self._with_narrow_spreads(output, codes, decode)
        draws = [place for place in rows if place not in steady]
        centers = [place for place in codes if self._is_center(encode, parts, place, draws)]
        yield from (CodeReading(place) for place in centers)
        # a code that is drawn inside `encode` and returned without what it was drawn from
        yield from (CodeReading(place) for place in draws)

    def is_rows(self, part: Any) -> bool:
        """Whether a part may be codes: numbers for each input."""
        return is_dense(part) and part.ndim > 1 and len(part) == len(self.x)

    def _is_center(
        self,
        encode: Callable[[Tensor], Any],
        parts: dict[Pick, Any],
        place: Pick,
        draws: list[Pick],
    ) -> bool:
        """Whether a part that repeats may be a mean: what is drawn beside it lies about it.

        What stands beside a draw may be its log-variance, which no decoder reads.
        """
        beside = [draw for draw in draws if parts[draw].shape == parts[place].shape]
        if not beside:
            return True
        results = [places_of(self.run(encode, self.x, seed=seed)) for seed in range(LEAST_DRAWS)]
        return all(
            is_center(torch.stack([result[draw] for result in results]), parts[place])
            for draw in beside
        )

    def _with_narrow_spreads(
        self, output: Any, codes: list[Pick], decode: Callable[[Tensor], Any] | None
    ) -> Iterator[CodeReading]:
        """Means with a spread for all rows or all numbers of a row, where draws bear it out.

        A number for each row may be anything else, such as a loss.
        """
        parts = places_of(output)
        narrow = [place for place, part in parts.items() if is_dense(part) and part.numel() > 1]
        draws = self.forward_draws() if decode is not None and narrow else None
        if draws is None or decode is None:
            return
        for mean in codes:
            for spread in narrow:
                if parts[spread].shape == parts[mean].shape:
                    continue
                if not is_narrow(parts[spread], parts[mean]):
                    continue
                readings = [CodeReading(mean, spread, kind) for kind in KINDS]
                yield from (
                    reading
                    for reading in readings
                    if (samples := self.samples(reading, output, decode)) is not None
                    and is_alike(samples, draws)
                )

    @staticmethod
    def _by_name(parts: dict[Pick, Any]) -> Iterator[CodeReading]:
        words = {
            place: place[-1].lower()
            for place, part in parts.items()
            if isinstance(place[-1], str) and isinstance(part, Tensor)
        }
        means = [place for place, word in words.items() if MEANS.match(word)]
        spreads = [(at, kind) for at, word in words.items() if (kind := spread_kind(word))]
        for mean in means:
            for spread, kind in spreads:
                yield CodeReading(mean, spread, kind)
            yield CodeReading(mean)

    def roles(
        self,
        encode: Callable[[Tensor], Any],
        output: Any,
        places: tuple[Pick, Pick],
        decode: Callable[[Tensor], Any] | None,
    ) -> CodeReading:
        """Which of two tensors is the mean, and what the other one is.

        By the names of the layers that make them; else by the spread of forward passes, which
        draw from what the encoder gives; else the usual order, (mean, log_var).
        """
        one, other = places
        usual = CodeReading(one, other, "log_var")
        names = self.makers(encode, [one, other])
        for mean, spread in ((one, other), (other, one)):
            kind = spread_kind(names.get(spread, ""))
            is_mean = names.get(mean) is not None and spread_kind(names[mean]) is None
            if kind is not None and is_mean:
                # a layer called "var" or "sigma" mostly gives its logarithm, which may be negative
                part = places_of(output)[spread]
                if kind in ("stddev", "variance") and bool((part < 0).any()):
                    kind = "log_var"
                usual = CodeReading(mean, spread, kind)
                break
        return usual if decode is None else self._by_draws(output, usual, decode)

    def makers(self, encode: Callable[[Tensor], Any], keys: list[Pick]) -> dict[Pick, str]:
        """The name of the layer whose very output stands at each place."""
        outputs: list[tuple[str, Tensor, int]] = []

        def recorder(name: str) -> Callable[..., None]:
            def record(_: Any, __: Any, made: Any) -> None:
                if isinstance(made, Tensor):
                    with contextlib.suppress(RuntimeError):  # within vmap, which has no storage
                        outputs.append((name, made, made.data_ptr()))

            return record

        handles = []
        try:
            for owner in self.owners:
                for name, part in owner.named_modules():
                    if name and not isinstance(part, torch.jit.ScriptModule):  # take no hooks
                        handles.append(part.register_forward_hook(recorder(name)))
            parts = places_of(self.run(encode, self.x))
        finally:
            for handle in handles:
                handle.remove()
        return {
            key: name.lower()
            for key in keys
            for name, made, place in outputs
            if isinstance(parts.get(key), Tensor)
            and place == parts[key].data_ptr()
            and made.numel() == parts[key].numel()
        }

    def _by_draws(
        self, output: Any, usual: CodeReading, decode: Callable[[Tensor], Any]
    ) -> CodeReading:
        """The reading whose draws, decoded, look most like the module's own forward passes."""
        if usual.mean is None or usual.spread is None:
            return usual
        outputs = self.forward_draws()
        if outputs is None:
            return usual  # forward decodes the mean: nothing to be learned about the spread
        orders = ((usual.mean, usual.spread), (usual.spread, usual.mean))
        readings = [CodeReading(*order, kind) for order in orders for kind in KINDS]
        losses = {
            reading: loss
            for reading in readings
            if (samples := self.samples(reading, output, decode)) is not None
            and math.isfinite(loss := discrepancy(samples, outputs))
        }
        if usual not in losses:
            return min(losses, key=lambda reading: losses[reading]) if losses else usual
        best = min(losses, key=lambda reading: losses[reading])
        return best if losses[best] < BETTER * losses[usual] else usual

    def forward_draws(self) -> Tensor | None:
        """Forward passes of the first input, (n, D); None where they do not differ."""
        return self._draws_of_forward

    @functools.cached_property
    def _draws_of_forward(self) -> Tensor | None:
        """The passes, made once: every part that may decode asks for them."""
        many = self.x[:1].expand(self.draws, *self.x.shape[1:])
        forward = self.run(self.module, many) if callable(self.module) else None
        pick = Trial(self.module, many, self.space).reconstruction(forward)
        if pick is None:
            return None
        outputs = picked(forward, pick, "forward").flatten(1)
        return outputs if bool((outputs.std(0) > 0).any()) else None

    def samples(
        self, reading: CodeReading, output: Any, decode: Callable[[Tensor], Any]
    ) -> Tensor | None:
        """Decoded draws of a reading of the first input, (n, D)."""
        assert reading.mean is not None and reading.spread is not None
        code = picked(output, reading.mean, "encode")
        mean, part = code[:1], as_wide(picked(output, reading.spread, "encode"), code)[:1]
        if reading.kind in ("stddev", "variance") and bool((part < 0).any()):
            return None
        spread = stddev_of(part, reading.kind)
        shape = (self.draws, *mean.shape[1:])
        noise = torch.randn(shape, generator=generator(0), dtype=mean.dtype).to(mean.device)
        decoding = self.run(decode, mean + spread * noise)
        many = self.x[:1].expand(self.draws, *self.x.shape[1:])
        place = Trial(self.module, many, self.space).reconstruction(decoding)
        return None if place is None else picked(decoding, place, "decode").flatten(1)


ENCODERS = ("encode", "_encode", "encoder", "_encoder", "enc", "inference", "recognition", "q")
DECODERS = ("decode", "_decode", "decoder", "_decoder", "dec", "generate", "generator", "p")


def is_dense(value: Any) -> TypeGuard[Tensor]:
    """Whether a value is a tensor of floating type that can be sliced and compared."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.layout is torch.strided


def attribute(holder: Any, name: str) -> Any:
    """An attribute of a stranger's object, or None where it has none or raises anything."""
    try:
        return getattr(holder, name, None)
    except Exception:  # a property may raise anything
        return None


def discrepancy(samples: Tensor, outputs: Tensor) -> float:
    """How far draws, (n, D), are from others, in mean and spread."""
    loss = (samples.mean(0) - outputs.mean(0)).square().sum() + (
        samples.std(0) - outputs.std(0)
    ).square().sum()
    return float(loss)


def is_alike(samples: Tensor, outputs: Tensor) -> bool:
    """Whether draws, (n, D), have the mean and the spread of others, as far as so many tell."""
    one, other = samples.double(), outputs.double()
    error = (one.var(0) / len(one) + other.var(0) / len(other)).sum().sqrt()
    ratio = float(one.var(0).sum() / other.var(0).sum().clamp_min(1e-300))
    near = float((one.mean(0) - other.mean(0)).norm()) <= FAR * float(error)
    return near and 1 / ALIKE < ratio < ALIKE


def is_center(values: Tensor, center: Tensor) -> bool:
    """Whether draws, (n, ...), lie about their center, (...), by the error of their mean."""
    gap = values.double().mean(0) - center.double()
    error = values.double().std(0) / math.sqrt(len(values))
    return float(gap.norm()) <= FAR * float(error.norm())


def is_image_distribution(trial: Trial, made: Any) -> bool:
    """Whether a decoder's output is a distribution over inputs."""
    if made is None or not is_distribution(made):
        return False
    while isinstance(made, torch.distributions.Independent):
        made = made.base_dist
    try:
        return trial.is_image(made.mean)
    except Exception:  # a user's object may raise anything from a property
        return False


def spread_kind(name: str) -> SpreadKind | None:
    """What a name says about a spread.

    Examples:
        >>> from robustvae.models.adapters.trial import spread_kind
        >>> spread_kind("fc_logvar"), spread_kind("mu")
        ('log_var', None)
    """
    last = name.lower().rpartition(".")[2]
    return next((kind for kind, pattern in SPREADS if pattern.search(last)), None)


def example_of(space: InputSpace, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Inputs to try a module on where none are given, (B, *shape) as the model reads them."""
    like = torch.empty(0, dtype=torch.float32, device=device)
    x = rand(ROWS, *space.image_shape, like=like, generator=generator(0))
    return space.to_model(x).to(dtype)

"""Modules whose forward pass encodes and decodes in one, with no part of its own that decodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from robustvae.errors import DtypeError, ModelError, UnsupportedError
from robustvae.models.adapters.adapter import matched, same
from robustvae.models.adapters.calls import Place, Watch, WithCode, tolerance_of
from robustvae.models.adapters.reading import CodeReading, Pick, fields_of, picked
from robustvae.models.adapters.trial import (
    CLOSE,
    DECODERS,
    ENCODERS,
    KINDS,
    ROWS,
    Trial,
    sampling,
    spread_kind,
)
from robustvae.models.adapters.vector_quantized import quantizers_of
from robustvae.models.adapters.wrapped import Match, Output
from robustvae.models.base import frozen
from robustvae.models.likelihoods import Distribution
from robustvae.registry import register

PLACES = 4  # calls tried as the one that makes the code: views of one tensor repeat its numbers
DRAWS = 4  # normal draws of a code's size that are tried as the noise of the code
PADS = 3  # rows more, where a constant has as many rows as the batch
NEAR = 2.0  # times what codes move an output by that differ by rounding
EFFECT = 5.0  # times the tolerance: a smaller effect of the code tells nothing about the rest
NO_TRACE = (
    "bounds by the weights want an encoder and a decoder that are called by themselves, and this "
    "model has one forward pass for both; use methods=['smoothing'], or give encode= and decode="
)
REMARK = (
    "no part decodes by itself: codes are put in the place of forward's own code, and what comes "
    "out was compared with forward passes"
)
BETWEEN = (
    "something stands between the code of this model and its part that decodes, such as a flow, so "
    "the prior of the code is not known, and none is assumed: give wrap(..., prior=), a "
    "distribution of shape (d,)"
)


@register("adapter", "forward-alone")
@final
@dataclass(frozen=True)
class ForwardAlone:
    """Models whose forward pass alone encodes, draws and decodes, and returns the code's mean."""

    priority: ClassVar[int] = 85

    def match(self, trial: Trial) -> Match | None:
        """Forward as the encoder, and forward with another code in it as the decoder."""
        return match_of(trial)


def match_of(
    trial: Trial, reading: CodeReading | None = None, reconstruction: Pick | None = None
) -> Match | None:
    """A module's forward pass as an encoder and a decoder, where trials show that it is both.

    Args:
        trial: The module and its inputs.
        reading: How codes are read, where that was said.
        reconstruction: Where the reconstruction is, where that was said.
    """
    # a compiled module would run as it was compiled, without a look at its calls
    module = getattr(trial.module, "_orig_mod", trial.module)
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        return None
    inner = _with_extremes(Trial(module, trial.x, trial.space))
    pick = reconstruction or inner.reconstruction(inner.run(module, inner.x))
    if pick is None:
        return None
    encoders: list[tuple[str, Callable[[Tensor], Any]]] = [("forward", module)]
    for name, encode in [*encoders, *inner.parts(ENCODERS)]:
        for one in [reading] if reading is not None else _readings(inner, encode):
            decoder = _decoder(inner, encode, one, pick)
            if decoder is None:
                continue
            words = f"{type(module).__name__}.{name}, and forward after its code as the decoder"
            match = matched(inner, encode, decoder, words, reading=one)
            if match is not None:
                missing = match.prior_missing
                if match.prior is None and _is_beyond(inner, decoder, match):
                    missing = missing or BETWEEN
                return replace(
                    match,
                    output=Output(pick),
                    prior_missing=missing,
                    assumptions=(*match.assumptions, REMARK),
                    no_trace=NO_TRACE,
                    is_straight_through=next(quantizers_of(module), None) is not None,
                )
    return None


def _is_beyond(trial: Trial, decoder: AfterCode, match: Match) -> bool:
    """Whether a part that decodes makes something else of the codes than forward does.

    Between the code and that part may be a flow, whose prior is that of what comes out of it.
    """
    code = trial.mean_of(match.code, trial.run(match.encode, trial.x))
    image = None if code is None else trial.run(decoder, code)
    if code is None or image is None:
        return False
    expected = picked(image, decoder.pick, "forward")
    for _, part in trial.parts(DECODERS):
        decoding = trial.run(part, code)
        place = trial.reconstruction(decoding)
        if place is not None and not same(picked(decoding, place, "decode"), expected):
            return True
    return False


def _with_extremes(trial: Trial) -> Trial:
    """A trial with two inputs besides that differ as far as they can: seven in all at most."""
    levels = torch.tensor([0.0, 1.0], dtype=trial.x.dtype, device=trial.x.device)
    ones = (1,) * len(trial.space.image_shape)
    flat = levels.reshape(-1, *ones).expand(-1, *trial.space.image_shape)
    x = torch.cat([trial.x[:ROWS], trial.space.to_model(flat).to(trial.x.dtype)])
    return Trial(trial.module, x, trial.space)


def _readings(trial: Trial, encode: Callable[[Tensor], Any]) -> Iterator[CodeReading]:
    """The ways to read codes off an output: likely ones first, then other orders and spreads."""
    output = trial.run(encode, trial.x)
    if output is None:
        return
    likely = list(trial.readings(encode, output, None))
    others = [
        CodeReading(mean, spread, kind)
        for reading in likely
        if reading.mean is not None and reading.spread is not None
        for mean, spread in (
            (reading.mean, reading.spread),
            (reading.spread, reading.mean),
        )
        for kind in KINDS
    ]
    with_spread = [one for one in likely if one.mean is None or one.spread is not None]
    without = [one for one in likely if one not in with_spread]
    yield from dict.fromkeys([*with_spread, *others, *without])


def _decoder(
    trial: Trial, encode: Callable[[Tensor], Any], reading: CodeReading, pick: Pick
) -> AfterCode | None:
    """Forward after its code, where codes as they are read give what forward passes give."""
    output = trial.run(encode, trial.x)
    mean = None if output is None else trial.mean_of(reading, output)
    if mean is None or (encode is trial.module and reading.mean == pick):
        return None
    watch = Watch(mean)
    result = trial.run(watch.within(trial.module), trial.x)
    try:
        expected = picked(result, pick, "forward")
        codes = codes_of(reading.read(output, trial.x, mean[0].numel()), watch.draws)
    except Exception:  # a spread that is none, or a user's object that raises from a property
        return None
    has_spread = reading.mean is None or reading.spread is not None
    # without a draw, the input or an output would be the code of an identity
    if trial.is_image(mean) and not (watch.draws and has_spread):
        return None
    # with a draw the code is known to the last digit, and with it the kind of the spread
    if watch.draws and not has_spread:
        return None
    for place in watch.places[:PLACES]:
        decoder = AfterCode(trial.module, trial.x[:1], tuple(mean.shape[1:]), place, pick)
        if not any(_repeats(trial, decoder, z.reshape(mean.shape), expected) for z in codes):
            continue
        if watch.draws or not has_spread or _is_spread(trial, encode, reading, decoder):
            return decoder
    return None


def _is_spread(
    trial: Trial, encode: Callable[[Tensor], Any], reading: CodeReading, decoder: AfterCode
) -> bool:
    """Whether a part is a spread, of a forward pass that draws nothing in evaluation mode.

    In training mode it may draw; else its name must say so.
    """
    if reading.mean is None or reading.spread is None:
        return True

    def drawn(x: Tensor) -> Any:
        with sampling(trial.module):
            return watch.within(trial.module)(x)

    output = trial.run(encode, trial.x)
    mean = trial.mean_of(reading, output)
    assert mean is not None
    watch = Watch(mean)
    result = trial.run(drawn, trial.x)
    if watch.draws:
        expected = picked(result, decoder.pick, "forward")
        codes = codes_of(reading.read(output, trial.x, mean[0].numel()), watch.draws)
        if any(_repeats(trial, decoder, z.reshape(mean.shape), expected) for z in codes):
            return True
    names = [step for step in reading.spread if isinstance(step, str)]
    names += trial.makers(encode, [reading.spread]).values()
    return any(spread_kind(name) is not None for name in names)


def codes_of(q: Distribution, draws: Sequence[Tensor]) -> list[Tensor]:
    """What the code of a forward pass may have been, (B, d): the mean, or one of its draws."""
    shape = q.mean.shape
    return [q.mean + q.stddev * draw.reshape(shape) for draw in draws[:DRAWS]] or [q.mean]


def _repeats(trial: Trial, decoder: AfterCode, z: Tensor, expected: Tensor) -> bool:
    """Whether codes decode to what forward passes made of them, and the code has an effect."""
    # the next number beside each code: what rounding inside of the module makes of an equal code
    beside = z + z.abs() * decoder.place.eps
    images = []
    # another number of rows too: of its own shape a constant may pass for codes
    for codes, seed in ((z, 0), (z, 1), (beside, 0), (z[1:], 0)):
        try:
            output = picked(trial.run(decoder, codes, seed=seed), decoder.pick, "forward")
        except DtypeError:
            return False
        if output.shape[1:] != expected.shape[1:] or len(output) != len(codes):
            return False
        images.append(output.double())

    def gap(one: Tensor, other: Tensor) -> float:
        return float((one - other).abs().max())

    image, again, near, fewer = images
    tolerance = tolerance_of(expected) + NEAR * gap(image, near)
    return (
        bool(image.isfinite().all())
        and gap(image, expected.double()) <= tolerance
        and gap(image, again) <= tolerance
        and gap(image[1:], fewer) <= tolerance
        and gap(image[1:], image[:-1]) > EFFECT * tolerance
        and _has_backward(trial, decoder, z)
    )


def _has_backward(trial: Trial, decoder: AfterCode, z: Tensor) -> bool:
    """Whether a backward pass runs: parts that are computed again then find their own code."""

    def gradient(codes: Tensor) -> Tensor:
        # weights as searches have them, or a part computed again could go without its code
        with torch.enable_grad(), frozen(decoder):
            codes.requires_grad_()
            image = picked(decoder(codes), decoder.pick, "forward")
            if image.requires_grad:
                torch.autograd.grad(image.sum(), codes, allow_unused=True)
        return image

    return trial.run(gradient, z) is not None


@final
class AfterCode(nn.Module):
    """Codes to what a module's forward pass makes of them, whatever it reads.

    The forward pass of one and the same input, in which the code is replaced and nothing is drawn:
    the whole module runs, and only what comes after the code counts.

    Args:
        module: The stranger's.
        anchor: The input, (1, *shape); any one does.
        code_shape: Of one code.
        place: The call that makes the code.
        pick: Where the reconstruction is in what forward returns.
    """

    def __init__(
        self,
        module: nn.Module,
        anchor: Tensor,
        code_shape: tuple[int, ...],
        place: Place,
        pick: Pick,
    ) -> None:
        super().__init__()
        self.module, self.code_shape, self.place, self.pick = module, code_shape, place, pick
        # adding a submodule does not change its mode
        self.training = module.training
        self.register_buffer("anchor", anchor.detach().clone(), persistent=False)

    def forward(self, z: Tensor) -> Any:
        """What forward returns for codes (B, *code_shape).

        Raises:
            UnsupportedError: In training mode, of a module with buffers: statistics of batches
                would take in the one input.
            ModelError: The pass makes its code by other calls than when it was wrapped.
        """
        if self.module.training and next(self.module.buffers(), None) is not None:
            raise UnsupportedError(
                "a decoder that is a whole forward pass wants evaluation mode, or its buffers "
                "would take in an input that is none: call model.eval(), or, to train it, give "
                "wrap(encode=..., decode=..., latent=..., image_shape=...)"
            )
        for pad in range(PADS):
            codes = torch.cat([z, z[:1].expand(pad, *z.shape[1:])]) if pad else z
            anchor = self.get_buffer("anchor").to(z.dtype)
            mode = WithCode(codes, self.place)
            x = anchor.expand(len(codes), *anchor.shape[1:]).contiguous()
            # draws that change nothing are made in vain
            with torch.random.fork_rng(devices=[], enabled=not self.module.training):
                result = mode.within(self.module)(x)
            if mode.is_placed:
                return _rows(result, len(z)) if pad else result
        raise ModelError(
            "forward makes its code by other calls than when it was wrapped (a branch that reads "
            "the data, or the number of inputs): give wrap(encode=..., decode=..., latent=..., "
            "image_shape=...)"
        )

    @torch.no_grad()
    def gap(self, u: Tensor, q: Distribution) -> tuple[float, float]:
        """How far forward passes are from their own codes, decoded, and what rounding explains.

        Args:
            u: What the module reads, (B, *shape).
            q: Its posterior there, whose draws are compared.

        Returns:
            Both relative to the largest output.
        """
        watch = Watch(q.mean.reshape(len(u), *self.code_shape).to(u.dtype))
        expected = picked(watch.within(self.module)(u), self.pick, "forward").double()
        size = float(expected.abs().max()) + 1e-300
        images = (
            picked(self(z.reshape(len(u), *self.code_shape).to(u.dtype)), self.pick, "forward")
            for z in codes_of(q, watch.draws)
        )
        gap = min(float((image.double() - expected).abs().max()) for image in images)
        return gap / size, max(CLOSE, 4 * self.place.eps)


def _rows(output: Any, rows: int) -> Any:
    """The first rows of every tensor in an output of tuples, mappings and dataclasses."""
    if isinstance(output, Tensor):
        return output[:rows]
    if isinstance(output, Mapping):
        return {key: _rows(value, rows) for key, value in output.items()}
    if hasattr(output, "_asdict"):
        return type(output)(*(_rows(value, rows) for value in output))
    if isinstance(output, tuple | list):
        return [_rows(value, rows) for value in output]
    parts = fields_of(output)
    return SimpleNamespace(**{str(key): _rows(part, rows) for key, part in parts.items()})

"""`wrap` makes a `VAE` of anybody's autoencoder, which runs as it is."""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, cast, final

import torch
from torch import Tensor, nn

from robustvae.arguments import checked
from robustvae.data.space import InputSpace
from robustvae.errors import (
    ConfigError,
    DtypeError,
    ModelError,
    RobustVAEWarning,
    ShapeError,
    UnsupportedError,
)
from robustvae.models.adapters.adapter import PRIOR_ASSUMED
from robustvae.models.adapters.losses import TrainingLoss
from robustvae.models.adapters.matching import first_match, holds
from robustvae.models.adapters.parts import OPAQUE, reached
from robustvae.models.adapters.reading import (
    CodeReading,
    Pick,
    Step,
    as_distribution,
    described,
    picked,
)
from robustvae.models.adapters.said import KINDS, Returns, Said, shape_of, tensor_of
from robustvae.models.adapters.shapes import dtype_of, shapes_of
from robustvae.models.adapters.trial import Trial, attribute, example_of, quiet
from robustvae.models.adapters.wrapped import BlackBox, Match, Output, WrappedVAE
from robustvae.models.base import VAE, frozen
from robustvae.registry import build

AT_ONCE = 64  # inputs of `fit_on` reconstructed at a time


@checked()
def wrap(
    model: Any = None,
    *,
    encode: Callable[[Tensor], Any] | None = None,
    decode: Callable[[Tensor], Any] | None = None,
    latent: int | None = None,
    image_shape: Sequence[int] | None = None,
    pixels: Any = (0.0, 1.0),
    likelihood: str | None = None,
    stddev: float | Literal["fit"] | TrainingLoss | None = None,
    fit_on: Any = None,
    prior: Any = None,
    returns: Returns | None = None,
    mean: Step | None = None,
    log_var: Step | None = None,
    code_stddev: Step | None = None,
    reconstruction: Step | None = None,
    outputs: str | None = None,
    output_only: bool = False,
    adapter: Any = None,
) -> VAE:
    """Make a `VAE` of any autoencoder: a module, or two functions that encode and decode.

    A module is recognized by its protocol (`robustvae list adapter`): its calls are tried on
    `fit_on` or on random inputs, in evaluation mode and without a trace left in it; `recognized`
    of the result says what matched. Every guess can be said instead. The module runs as it is:
    nothing in it is replaced, laid out or changed.

    Args:
        model: A module, or an object with `encode` and `decode`. None with the two functions.
        encode: Inputs to a distribution over latents (any of `torch.distributions`, or an object
            with `.mean`, `.stddev` and `.log_prob`), to (mean, log_var), or to codes alone.
        decode: Latents to a distribution over inputs, or to a tensor.
        latent: Dimension d of the latent; found by trial where it is not given.
        image_shape: Shape of one input, (C, H, W), or any other; see `InputSpace`. Found in the
            module or in `fit_on` where it is not given.
        pixels: What the model reads: (low, high), {"mean": ..., "std": ...} of a normalization, or
            an `InputSpace`. Inputs of the library stay images in [0, 1].
        likelihood: "bernoulli", "gaussian" or "laplace" of a decoder that returns a tensor; None
            states none, and what needs one is left out by name.
        stddev: Of the "gaussian" or "laplace" likelihood, in the model's unit; "fit" takes the
            root mean square of the residuals on `fit_on`, and a `TrainingLoss` what it implies.
        fit_on: Inputs, in [0, 1] or in the model's unit.
        prior: A distribution of shape (d,); None for the model's own, else the standard normal.
        returns: What `encode` returns: "distribution", "mean_log_var", "mean_stddev",
            "mean_variance" or "mean". With functions a `decode` that returns two tensors is read
            in the same way.
        mean: Where the mean is in what the encoder or forward returns: a position, a key, an
            attribute, or a function of the output.
        log_var: Where the log-variance is.
        code_stddev: Where the standard deviation is, instead of `log_var`.
        reconstruction: Where the reconstruction is in what the decoder returns.
        outputs: What a decoder's tensor holds: "mean", "probabilities" or "logits". None for
            "mean", or by trial for the Bernoulli likelihood.
        output_only: Take the module as a black box, whose output alone is judged.
        adapter: The adapter to use, by name or as an object; None for the first that matches.

    Returns:
        A `VAE`; modules that were passed in, or that functions reach, are its submodules, so
        `.to()`, evaluation mode and checks of weights reach them.

    Raises:
        UnsupportedError: Nothing was recognized; the message says what was seen and what to say.
        ModelError: The module itself raised on every shape that was tried, or has weights without
            values.
        DtypeError: `encode` or `decode` cannot be called, or returns something else than said.
        ShapeError: A bad `image_shape`, or an output of another size than (B, d), (B, C, H, W).
        UnknownNameError: Any other `returns`, `likelihood` or `outputs`.
        ConfigError: Arguments that contradict each other.

    Examples:
        >>> import robustvae as rv, torch
        >>> class Small(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.encoder = torch.nn.Linear(16, 4)
        ...         self.decoder = torch.nn.Linear(2, 16)
        ...     def encode(self, x):
        ...         return self.encoder(x.view(-1, 16)).chunk(2, dim=1)
        ...     def decode(self, z):
        ...         return torch.sigmoid(self.decoder(z))
        >>> mine = rv.wrap(Small(), image_shape=(1, 4, 4))
        >>> mine.recognized
        'Small.encode and Small.decode; mean at 0, log_var at 1'
        >>> mine.decode(mine.encode(torch.rand(3, 1, 4, 4)).mean).mean.shape
        torch.Size([3, 1, 4, 4])
    """
    statements = Said(
        latent=latent,
        image_shape=image_shape,
        pixels=pixels,
        likelihood=likelihood,
        stddev=stddev,
        fit_on=fit_on,
        prior=prior,
        returns=returns,
        mean=mean,
        spread=log_var if code_stddev is None else code_stddev,
        spread_kind="log_var" if code_stddev is None else "stddev",
        reconstruction=reconstruction,
        outputs=outputs,
        output_only=output_only,
        adapter=adapter,
    )
    if log_var is not None and code_stddev is not None:
        raise ConfigError("log_var and code_stddev are two ways to say the spread: give one")
    modules = reached(model, encode, decode).modules
    _check_values(modules)
    weights = _weights(modules)
    if model is None:
        vae = _of_functions(encode, decode, statements)
    else:
        if encode is not None or decode is not None:
            raise ConfigError("give a model, or encode= and decode=, not both")
        vae = _of_module(model, statements)
    if additions := [name for name in _weights(modules) if name not in weights]:
        raise ModelError(
            f"weights must be there before the first call, got {additions[0]!r} made in one: run "
            "the model once, load its trained weights, and wrap it then"
        )
    # a bare tensor is in plain sight of who wrote the function: it stands in `unseen` only
    opaque = [what for what in getattr(vae, "unseen", ()) if what.startswith(OPAQUE)]
    if opaque:
        warnings.warn(
            f"wrap cannot look into {', '.join(opaque)}: weights there are not put into "
            "evaluation mode, checked, hashed or moved; pass the module that holds them",
            RobustVAEWarning,
            stacklevel=2,
        )
    return vae


def _weights(modules: Sequence[nn.Module]) -> list[str]:
    return [name for module in modules for name, _ in module.named_parameters()]


def _check_values(modules: Sequence[nn.Module]) -> None:
    """Raise unless all weights hold values: a trial would give lazy ones values at random."""
    for module in modules:
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            fault = "on the device meta" if value.is_meta else ""
            if torch.nn.parameter.is_lazy(value):
                fault = "of a lazy layer, which has not seen an input"
            elif value.is_inference():
                fault = "made inside torch.inference_mode(), which takes no gradients"
            if fault:
                raise ModelError(
                    f"weights of {type(module).__name__} must hold values for gradients, got "
                    f"{name!r} {fault}: load the trained weights before wrapping"
                )


def _of_functions(encode: Any, decode: Any, said: Said) -> VAE:
    for name, part in (("encode", encode), ("decode", decode)):
        if not callable(part):
            raise DtypeError(
                f"{name} must be a function or module, got {type(part).__name__}: "
                "give wrap(module), or both encode= and decode="
            )
    shape = said.image_shape
    if shape is None and said.fit_on is not None:
        shape = shape_of(said.fit_on)
    if shape is None:
        raise ShapeError("image_shape is not known: give image_shape=(C, H, W), or fit_on=inputs")
    space = said.space(shape)
    reading = said.reading or CodeReading()
    code_shape = (said.latent,) if said.latent is not None else _code_shape(encode, space, said)
    output = Output(
        None if said.reconstruction is None else (said.reconstruction,),
        pair=KINDS.get(said.returns or ""),
    )
    match = Match(
        recognized="the functions encode and decode",
        encode=encode,
        decode=decode,
        code_shape=code_shape,
        code=reading,
        output=output,
        prior=said.prior,
    )
    if said.prior is not None:
        as_distribution(said.prior, (math.prod(match.code_shape),), "prior")
    return _finished(match, space, said)


def _code_shape(encode: Any, space: InputSpace, said: Said) -> tuple[int, ...]:
    owners = nn.ModuleList(reached(encode).modules)
    trial = Trial(owners, _example(space, said, encode), space)
    reading = said.reading
    code = trial.code(encode, None) if reading is None else None
    if reading is not None:
        mean = trial.mean_of(reading, trial.run(encode, trial.x))
        if mean is not None:
            return tuple(mean.shape[1:])
    if code is None:
        raise ShapeError("the latent's dimension is not known: give latent=d")
    return code[1]


def _of_module(model: Any, said: Said) -> VAE:
    if isinstance(model, VAE) and not said.output_only:
        return model
    if isinstance(model, type):
        raise DtypeError(
            f"model must be an object, got the class {model.__name__}: give wrap({model.__name__}("
            "...)) with its weights loaded"
        )
    has_entry = any(attribute(model, name) for name in ("encode", "decision_function"))
    if not callable(model) and not has_entry:
        raise DtypeError(
            f"model must be a module, or an object with encode and decode, "
            f"got {type(model).__name__}: give wrap(encode=..., decode=...)"
        )
    if said.output_only:
        return _black_box(model, said)
    spaces = list(shapes_of(model, said))
    if not spaces:
        raise ShapeError(
            f"the shape of an input of {type(model).__name__} cannot be guessed: "
            "give image_shape=(C, H, W), or fit_on=inputs"
        )
    trials = [Trial(model, _example(space, said, model), space) for space in spaces]
    match = first_match(trials, said)
    if isinstance(match, tuple):
        return _finished(_with_said(*match, said), match[0].space or match[1], said)
    if match is not None:
        return match
    raise _refusal(model, said, spaces[0])


def _with_said(match: Match, space: InputSpace, said: Said) -> Match:
    """A match with what the user said put in place of what was guessed."""
    output = match.output
    if said.reconstruction is not None:
        decoding = _decoding(match, match.space or space)
        # what was said of forward's output may not be about a part that returns an image alone
        if output.reconstruction != () or holds(decoding, said.reconstruction):
            output = replace(output, reconstruction=(said.reconstruction,))
    changes: dict[str, Any] = {"output": output}
    if said.prior is not None:
        others = tuple(words for words in match.assumptions if words != PRIOR_ASSUMED)
        changes |= {"prior": said.prior, "prior_missing": "", "assumptions": others}
    width = math.prod(match.code_shape)
    if said.latent is not None and said.latent != width:
        raise ShapeError(
            f"latent must be {width}, which is what {match.recognized} gives, got {said.latent}: "
            "leave latent= out, or say where the mean is with mean="
        )
    return replace(match, **changes)


def _finished(match: Match, space: InputSpace, said: Said) -> VAE:
    """The wrapped model with its likelihood, fitted where that was wanted."""
    output = match.output
    if said.likelihood is not None:
        output = replace(output, likelihood=said.likelihood, stddev=None)
    if said.outputs is not None:
        output = replace(output, is_logits=said.outputs == "logits")
    elif output.likelihood == "bernoulli":
        output = replace(output, is_logits=_gives_logits(replace(match, output=output), space))
    if output.likelihood in ("gaussian", "laplace") and not said.fits:
        spread = output.stddev if said.stddev is None else said.stddev
        if isinstance(spread, TrainingLoss):
            sizes = math.prod(space.shape), math.prod(match.code_shape)
            spread = spread.stddev(*sizes, output.likelihood)
        scale = space.scale
        if scale is None:
            raise ConfigError(
                "stddev= in the model's unit needs one scale for all channels: give stddev='fit'"
            )
        output = replace(output, stddev=float(cast(float, spread)) / scale)
    if said.fits:
        bare = WrappedVAE(replace(match, output=replace(output, likelihood=None)), space)
        output = replace(output, stddev=_residual(bare, space, said.fit_on, said.likelihood))
    return WrappedVAE(replace(match, output=output), space)


def _decoding(match: Match, space: InputSpace) -> Any:
    """What a decoder returns for codes of any size; None where it raises."""
    vae = WrappedVAE(replace(match, output=replace(match.output, likelihood=None)), space)
    z = torch.linspace(-3, 3, 8 * vae.latent).reshape(8, vae.latent)
    first = next(iter(vae.parameters()), None)
    z = z.to(vae.device if first is not None else z.device, vae.dtype)
    return Trial(vae, z, space).run(vae.call_decode, z)


def _gives_logits(match: Match, space: InputSpace) -> bool:
    """Whether a decoder's tensor leaves [0, 1] on codes of any size: probabilities never do."""
    output = _decoding(match, space)
    if output is None or (match.output.reconstruction is None and not isinstance(output, Tensor)):
        return False
    u = picked(output, match.output.reconstruction or (), "decode")
    return not (float(u.min()) >= 0 and float(u.max()) <= 1)


@torch.no_grad()
def _residual(vae: WrappedVAE, space: InputSpace, given: Any, likelihood: str | None) -> float:
    """The standard deviation that residuals on inputs give to a likelihood."""
    x = space.to_images(_shaped(tensor_of(given), space), name="fit_on").to(vae.device, vae.dtype)
    total, absolute = 0.0, 0.0
    with frozen(vae):
        for part in x.split(AT_ONCE):
            residual = (vae.decode(vae.encode(part).mean).mean - part).double()
            total += float(residual.square().sum())
            absolute += float(residual.abs().sum())
    spread = math.sqrt(total / x.numel())
    if likelihood == "laplace":  # the scale of greatest likelihood is the mean absolute residual
        spread = math.sqrt(2) * absolute / x.numel()
    if not math.isfinite(spread):
        raise ModelError("the reconstructions of fit_on hold a NaN or an infinity: run rv.check")
    # a model that repeats its inputs exactly has no spread, and no density without one
    return max(spread, 1e-6)


def _black_box(model: Any, said: Said) -> VAE:
    if isinstance(model, VAE):
        return BlackBox(Through(model), (), said.space(model.image_shape), type(model).__name__)
    pick: Pick | None = None if said.reconstruction is None else (said.reconstruction,)
    for space in shapes_of(model, said):
        trial = Trial(model, _example(space, said, model), space)
        match = build("adapter", "black-box").match(trial)
        if isinstance(match, BlackBox):
            if pick is None:
                return match
            return BlackBox(model, pick, space, f"{type(model).__name__}.forward as a black box")
    raise _refusal(model, said, None)


@final
class Through(nn.Module):
    """Images to a model's reconstructions, as one map."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions by the posterior's mean, (B, C, H, W)."""
        return self.vae.decode(self.vae.encode(x).mean).mean


def _refusal(model: Any, said: Said, space: InputSpace | None) -> Exception:
    """Why nothing was recognized, and what to say."""
    kind = type(model).__name__
    remedy = (
        "say image_shape=, or where things are with mean=, log_var=, reconstruction=; give "
        "wrap(encode=..., decode=..., latent=..., image_shape=...), or output_only=True to judge "
        "the output alone"
    )
    spaces = [space] if space is not None else list(shapes_of(model, said))
    if not spaces:
        return ShapeError(f"the shape of an input of {kind} cannot be guessed: give image_shape=")
    trial = Trial(model, _example(spaces[0], said, model), spaces[0])
    shape = tuple(trial.x.shape)
    name, call = _entry_of(model)
    try:
        with quiet(*trial.owners):
            output = call(trial.x.clone())
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        line = " ".join(str(error).split())[:200]
        refusal = ModelError(
            f"{name} of {kind} raised {type(error).__name__} on inputs of shape {shape}: {line}; "
            f"{_hint(trial, call) or remedy}"
        )
        refusal.__cause__ = error
        return refusal
    if said.reading is not None:
        return UnsupportedError(
            f"codes of {kind}, read as was said, do not give what its forward passes return, and "
            f"{name} returns {described(output)}: say other places or another kind of spread "
            "(mean=, log_var=, code_stddev=, returns=), or leave them out to have them found"
        )
    return UnsupportedError(
        f"nothing was recognized in {kind}, whose {name} returns {described(output)} for inputs "
        f"of shape {shape}; {remedy}"
    )


def _entry_of(model: Any) -> tuple[str, Callable[[Tensor], Any]]:
    """What is called first, and its name: forward where there is one, else encode."""
    has_forward = getattr(type(model), "forward", None) is not nn.Module.forward
    # of a traced module's methods forward may be none
    has_forward &= hasattr(model, "forward") or not isinstance(model, nn.Module)
    if callable(model) and (has_forward or not attribute(model, "encode")):
        return "forward", model
    return "encode", model.encode


def _hint(trial: Trial, call: Callable[[Tensor], Any]) -> str:
    """What to say of a module that reads something else than one batch of images, or nothing."""
    function = getattr(call, "forward", call)
    with contextlib.suppress(TypeError, ValueError):  # no signature to be read
        required = [
            parameter
            for parameter in inspect.signature(function).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        if len(required) == 1 and required[0].kind is required[0].KEYWORD_ONLY:
            name = required[0].name
            return (
                f"it reads its input by the keyword {name}: give wrap(encode=lambda x: "
                f"model.encode({name}=x), decode=..., latent=..., image_shape=...), and decode "
                "likewise"
            )
        if len(required) > 1:
            more = ", ".join(
                f"{one.name}={one.name}" if one.kind is one.KEYWORD_ONLY else one.name
                for one in required[1:]
            )
            return (
                f"it reads {more} beside the input: fix them, and give "
                f"wrap(encode=lambda x: model.encode(x, {more}), "
                f"decode=lambda z: model.decode(z, {more}), latent=..., image_shape=...)"
            )
    x = trial.x
    if x.ndim > 3 and trial.run(call, x.movedim(1, -1).contiguous()) is not None:
        return (
            "it reads images with their channels last: give "
            "wrap(encode=lambda x: model.encode(x.movedim(1, -1)), "
            "decode=lambda z: model.decode(z).movedim(-1, 1), latent=..., image_shape=...)"
        )
    for dtype in (torch.uint8, torch.int64):
        if trial.run(call, (255 * x.clamp(0, 1)).round().to(dtype)) is not None:
            kind = str(dtype)
            return (
                f"it reads whole numbers of type {kind.removeprefix('torch.')}, which have no "
                f"gradient: give wrap(lambda x: model((255 * x).round().to({kind})), "
                "output_only=True, image_shape=...), for searches without gradients"
            )
    if trial.run(call, x[:1]) is not None:
        return (
            "it reads a batch of one: give wrap(encode=lambda x: torch.cat([model.encode(row) for "
            "row in x.split(1)]), decode=..., latent=..., image_shape=...), and decode likewise"
        )
    if trial.run(call, x[0]) is not None:
        return (
            "it reads one input without a batch: give wrap(encode=torch.vmap(model.encode), "
            "decode=torch.vmap(model.decode), latent=..., image_shape=...)"
        )
    return ""


def _shaped(values: Tensor, space: InputSpace) -> Tensor:
    """Inputs of a space's shape, where the model reads them flattened."""
    if values[0].numel() != math.prod(space.shape):
        return values
    return values.reshape(len(values), *space.shape)


def _example(space: InputSpace, said: Said, model: Any) -> Tensor:
    """Inputs to try the model on, as it reads them."""
    dtype, device = dtype_of(model)
    if said.fit_on is None:
        return example_of(space, dtype, device)
    x = space.to_images(_shaped(tensor_of(said.fit_on)[:8], space), name="fit_on")
    return space.to_model(x.to(device, dtype))

"""The faults that a diagnosis looks for, each by itself."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from robustvae.errors import RobustVAEError
from robustvae.models.adapters.trial import buffers_kept, quiet
from robustvae.models.base import VAE, frozen
from robustvae.models.comparisons import (
    SCALES,
    close,
    equal_states,
    gap,
    identical,
    line,
    mark_of,
    probed,
    random_states,
    type_of,
)
from robustvae.models.gradients import check_gradient
from robustvae.models.items import Item
from robustvae.models.likelihoods import Bernoulli, Gaussian, PointMass
from robustvae.models.operations import seconds_of
from robustvae.seeding import generator, rand, randn, seeded

FEW = 4  # inputs on which ranges of pixels are compared
SAME = 1e-4  # relative difference that float32 sums in another order may show
BETTER = 0.5  # another range must halve the reconstruction error to be called the right one
USEFUL = 0.7  # and do better than the best constant, or an untrained model would be accused
PROBES, LEAST_PROBES = 64, 6  # inputs or codes far from the data
WHOLE = 4.0  # seconds of a call beyond which the clock of the CPU counts
SLOW = 0.05  # seconds an input from which other types, slow on CPUs, are not tried
FAR = 10.0  # residuals this many times the stated spread


@final
class Subject:
    """A model or victim, and how it is called."""

    def __init__(self, model: Any, vae: VAE, x: Tensor) -> None:
        self.model, self.vae, self.x = model, vae, x
        self.is_victim = not isinstance(model, VAE)
        defense = f" behind {type(model.defense).__name__}" if self.is_victim else ""
        self.words = f"{getattr(vae, 'recognized', type(vae).__name__)}{defense}"
        self.seconds = 0.0
        self.repeats = True
        self.probes = PROBES

    def output(self, x: Tensor, seed: int = 0) -> Tensor:
        """What comes out for inputs, by one generator."""
        if self.is_victim:
            result: Tensor = self.model.reconstruct(x, generator=generator(seed, x.device))
            return result
        with frozen(self.vae):
            return self.vae.decode(self.vae.encode(x).mean).mean

    def in_double(self) -> Subject | None:
        """The same in float64, where that is the same model; None where it cannot be had."""
        if self.vae.dtype == torch.float64:
            return self
        try:
            twin = copy.deepcopy(self.vae).double()
            x = self.x.double()
            with torch.no_grad(), frozen(twin), frozen(self.vae):
                one = twin.decode(twin.encode(x).mean).mean
                other = self.vae.decode(self.vae.encode(self.x).mean).mean
            if not close(one, other.double(), 1e-2):
                return None
            model = replace(self.model, vae=twin) if self.is_victim else twin
            return Subject(model, twin, x)
        except Exception:  # a stranger's module may not be copied, or compute in float32 only
            return None


def look(subject: Subject) -> Iterator[Item]:
    """What is looked at, in order."""
    vae = subject.vae
    yield _mode(vae)
    first = _runs(subject)
    yield first
    if first.passed is False:
        yield from _why_not(subject, first)
        return
    looks: list[Callable[[Subject], Any]] = [
        _repeats,
        _state,
        _batch,
        _range,
        _spread,
        _kind,
        _likelihood,
        _finite,
        _halves,
        _gradient,
    ]
    for part in looks:
        name = part.__name__.strip("_")
        try:
            items = part(subject)
            yield from items
        except RobustVAEError as error:
            yield Item(name, None, f"could not be judged: {line(error)}")
        except Exception as error:  # a stranger's code may raise anything on unusual inputs
            yield Item(name, None, f"could not be judged: {type(error).__name__}: {line(error)}")


def _mode(vae: VAE) -> Item:
    training = [name or "the model" for name, part in vae.named_modules() if part.training]
    if not training:
        return Item("evaluation_mode", True, "the model is in evaluation mode")
    return Item(
        "evaluation_mode",
        False,
        f"the model is in training mode ({len(training)} of its parts)",
        "it is run in evaluation mode here and in audits; call model.eval() for your own calls",
        fixed=True,
    )


def _runs(subject: Subject) -> Item:
    x = subject.x.clone()
    start = time.process_time()
    try:
        with torch.no_grad(), quiet(subject.vae):
            subject.output(x)
    except Exception as error:  # whatever a stranger's code raises
        return Item(
            "runs",
            False,
            f"reconstructing {len(x)} inputs raised {type(error).__name__}: {line(error)}",
            "see the message; wrap with image_shape=, latent=, pixels= or returns=",
        )
    subject.seconds = _seconds(subject, time.process_time() - start)
    # a large model is probed in fewer places, so that the diagnosis stays one of seconds
    subject.probes = max(LEAST_PROBES, min(PROBES, int(len(x) / max(subject.seconds, 1e-6))))
    return Item("runs", True, f"{len(x)} inputs are reconstructed")


def _seconds(subject: Subject, measured: float) -> float:
    """What a call takes, by its operations: the same on every machine, so that records agree.

    The clock is asked only where a call takes whole seconds, most of them outside of tensors.
    """
    try:
        with torch.no_grad(), quiet(subject.vae):
            estimate = seconds_of(lambda: subject.output(subject.x.clone()))
    except Exception:  # a stranger's code may not bear to be watched
        estimate = 0.0
    return estimate if measured < WHOLE else max(estimate, measured)


def _why_not(subject: Subject, failure: Item) -> Iterator[Item]:
    """Faults that are known by what they raise."""
    text = failure.message
    if "probs" in text or "probabilities" in text:
        yield Item(
            "output_kind",
            False,
            "decode gives numbers outside [0, 1] as probabilities: they are logits",
            "give Bernoulli(logits=...), or wrap with likelihood='bernoulli', outputs='logits'",
        )
    for dtype in (torch.float32, torch.float64):
        if dtype != subject.vae.dtype and ("dtype" in text or "type" in text):
            return


def _repeats(subject: Subject) -> Iterator[Item]:
    vae, x = subject.vae, subject.x
    with torch.no_grad(), quiet(vae):
        before = random_states()
        with frozen(vae):
            vae.decode(vae.encode(x).mean).mean  # noqa: B018
        is_changed = not equal_states(before, random_states())
        codes, images = [], []
        with frozen(vae):
            for seed in (0, 1):
                with seeded(seed), buffers_kept(vae):
                    codes.append(vae.encode(x).mean)
            z = codes[0]
            for seed in (0, 1):
                with seeded(seed), buffers_kept(vae):
                    images.append(vae.decode(z).mean)
    for name, pair, call in (
        ("encode_repeats", codes, "encode"),
        ("decode_repeats", images, "forward" if vae.output_only else "decode"),
    ):
        if close(pair[0], pair[1], SAME):
            yield Item(name, True, f"{call} gives the same for the same input")
        else:
            yield Item(
                name,
                False,
                f"{call} draws random numbers: two calls differ by {gap(*pair):.2g}",
                f"let {call} return the mean (or a distribution), and leave drawing to the library",
            )
    subject.repeats = close(codes[0], codes[1], SAME) and close(images[0], images[1], SAME)
    random_inside = is_changed and not subject.repeats
    yield Item(
        "global_random_state",
        not is_changed,
        "the global random state is left alone"
        if not is_changed
        else "the model draws from the global random state"
        + ("" if random_inside else ", though what is read of its output does not change"),
        "" if not is_changed else "use eval-mode behavior without draws, or a generator of its own",
        fixed=is_changed and not random_inside,
    )
    if subject.is_victim:
        yield from _generator(subject)


def _generator(subject: Subject) -> Iterator[Item]:
    with torch.no_grad():
        one = subject.output(subject.x)
        with seeded(5):
            other = subject.output(subject.x)
    same = torch.equal(one, other) or close(one, other, SAME)
    yield Item(
        "same_generator_same_output",
        same,
        "one generator gives one output"
        if same
        else f"the same generator gives outputs {gap(one, other):.2g} apart",
        "" if same else "draw all random numbers of the defense from `generator`",
    )
    y = subject.x.clone().requires_grad_()
    with torch.enable_grad():
        graph = subject.output(y).detach()
    same = close(graph, one, SAME)
    yield Item(
        "gradients_change_nothing",
        same,
        "the output is the same with and without gradients"
        if same
        else f"with gradients the output differs by {gap(graph, one):.2g}",
        "" if same else "compute the same output whether or not the input requires a gradient",
    )


def _state(subject: Subject) -> Iterator[Item]:
    vae, x = subject.vae, subject.x.clone()
    state = {name: value.detach().clone() for name, value in vae.named_buffers()}
    marks = {name: mark_of(value) for name, value in vae.named_parameters()}
    with torch.no_grad():
        subject.output(x)
    changes = [
        name
        for name, value in vae.named_buffers()
        if name not in state or not identical(value, state[name])
    ]
    changes += [name for name, value in vae.named_parameters() if mark_of(value) != marks.get(name)]
    with torch.no_grad():
        for name, value in vae.named_buffers():  # left as it was, whatever the model does
            if name in changes and name in state and value.shape == state[name].shape:
                value.copy_(state[name])
    yield Item(
        "state_unchanged",
        not changes,
        "weights and buffers are the same after a call"
        if not changes
        else f"a call in evaluation mode changes {', '.join(changes[:3])}",
        "" if not changes else "update buffers in training mode only (if self.training: ...)",
    )
    same = torch.equal(x, subject.x)
    yield Item(
        "input_unchanged",
        same,
        "the input is left as it was" if same else "the model writes into its input",
        "" if same else "work on a copy: x = x.clone()",
    )


def _batch(subject: Subject) -> Iterator[Item]:
    x = subject.x
    if len(x) < 2:
        yield Item("batch_independent", None, "one input shows no dependence: give two or more")
        return
    if not subject.repeats:
        yield Item("batch_independent", None, "the model draws random numbers inside its calls")
        return
    with torch.no_grad(), quiet(subject.vae):
        together = subject.output(x)
        is_random = subject.is_victim and not close(subject.output(x, seed=1), together, SAME)
        if is_random:
            yield Item(
                "batch_independent",
                None,
                "the defense is random: its noise differs by place in the batch",
            )
            return
        try:
            alone = subject.output(x[:1])
        except Exception as error:  # a stranger's code may raise anything
            words = (
                f"{len(x)} inputs run and one alone raises {type(error).__name__}: {line(error)}"
            )
            remedy = "let one input run: stored statistics instead of the batch's own, no squeeze()"
            yield Item("batch_independent", False, words, remedy)
            return
        reverse = subject.output(x.flip(0)).flip(0)
    for name, pair, words in (
        ("batch_independent", (together[:1], alone), "its neighbors in the batch"),
        ("order_independent", (together, reverse), "its place in the batch"),
    ):
        same = close(pair[0], pair[1], SAME)
        yield Item(
            name,
            same,
            f"an input's output does not depend on {words}"
            if same
            else f"an input's output depends on {words}: it moves by {gap(*pair):.2g}",
            "" if same else "normalize by stored statistics (model.eval()), not by the batch's own",
        )


Range = tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], str]


def _range(subject: Subject) -> Iterator[Item]:
    vae, x = subject.vae, subject.x[:FEW]
    mean, stddev = float(x.mean()), max(float(x.std()), 1e-6)
    candidates: list[Range] = [
        ("[0, 1]", lambda v: v, lambda u: u, ""),
        ("[-1, 1]", lambda v: 2 * v - 1, lambda u: (u + 1) / 2, "pixels=(-1, 1)"),
        ("[0, 255]", lambda v: 255 * v, lambda u: u / 255, "pixels=(0, 255)"),
        (
            "normalized values",
            lambda v: (v - mean) / stddev,
            lambda u: mean + stddev * u,
            f"pixels={{'mean': {mean:.3g}, 'std': {stddev:.3g}}}, or those of the training",
        ),
        (
            "[-1, 1] for its input and [0, 1] for its output",
            lambda v: 2 * v - 1,
            lambda u: u,
            "encode=lambda x: encoder(2 * x - 1)",
        ),
        (
            "[0, 1] for its input and [-1, 1] for its output",
            lambda v: v,
            lambda u: (u + 1) / 2,
            "decode=lambda z: (decoder(z) + 1) / 2",
        ),
    ]
    if vae.output_only:
        candidates = candidates[:4]
    errors: dict[str, float] = {}
    with torch.no_grad(), quiet(vae):
        for name, into, back, _ in candidates:
            output = vae.decode(vae.encode(into(x)).mean).mean
            if output.shape != x.shape:
                yield Item("pixel_range", None, "the output has another shape than the input")
                return
            errors[name] = float((back(output) - x).square().mean())
        tanh = _is_tanh(vae, x, subject.probes)
    unit_error = errors["[0, 1]"]
    constant = float((x - x.mean(0, keepdim=True)).square().mean()) if len(x) > 1 else math.inf
    constant = min(constant, float(x.var()) or math.inf)
    best = min(errors, key=lambda name: errors[name])
    remedy = next(words for name, _, _, words in candidates if name == best)
    if best != "[0, 1]" and errors[best] < BETTER * unit_error and errors[best] < USEFUL * constant:
        yield Item(
            "pixel_range",
            False,
            f"the model reads {best}: squared error {errors[best]:.3g}, not {unit_error:.3g}",
            f"wrap with {remedy}",
        )
    elif tanh:
        yield Item(
            "pixel_range",
            False,
            "the decoder's outputs fill [-1, 1], where images lie in [0, 1]",
            "wrap with pixels=(-1, 1), or with decode=lambda z: (decoder(z) + 1) / 2",
        )
    else:
        yield Item(
            "pixel_range", True, f"no other range than [0, 1] fits better ({unit_error:.3g})"
        )


def _is_tanh(vae: VAE, x: Tensor, probes: int) -> bool:
    """Whether outputs fill [-1, 1] and never leave it, however large the codes."""
    if vae.output_only:
        return False
    outputs = probed(vae, x, probes)
    if outputs is None:
        return False
    low, high = float(outputs.min()), float(outputs.max())
    return -1.001 <= low <= -0.5 and 0.5 <= high <= 1.001


def _spread(subject: Subject) -> Iterator[Item]:
    vae, x = subject.vae, subject.x
    name = "spread_kind"
    with torch.no_grad(), quiet(vae):
        posterior = vae.encode(x)
        if isinstance(posterior, PointMass):
            yield Item(name, None, "codes have no spread")
            return
        prior = vae.prior()
        if not isinstance(prior, Gaussian) or not bool((prior.stddev == 1).all()):
            yield Item(name, None, "only a standard normal prior can be compared with")
            return
        mean, stddev = posterior.mean, posterior.stddev
        if bool((stddev <= 1).any()):
            yield Item(name, True, "posterior spreads lie below the prior's in places")
            return
        never_below = _never_below_one(vae, x, subject.probes)
    # read as a standard deviation, what stands for the log-variance is 2 log s
    as_stddev = (mean.square() + (2 * stddev.log()).square()).mean(0)
    as_log_var = (mean.square() + stddev.square()).mean(0)
    nearer = as_stddev.log().abs().mean() < as_log_var.log().abs().mean()
    if never_below or bool(nearer):
        yield Item(
            name,
            False,
            f"every posterior spread is above the prior's 1 (least {float(stddev.min()):.3g}): "
            "a standard deviation seems to be read as a log-variance",
            "wrap with returns='mean_stddev', or say code_stddev= where log_var= was said",
        )
    else:
        yield Item(name, True, f"posterior spreads are at least {float(stddev.min()):.3g}")


def _never_below_one(vae: VAE, x: Tensor, probes: int) -> bool:
    """Whether no input at all has a spread below 1: so exp(half of something positive) behaves."""
    shape = (probes, *x.shape[1:])
    noise = randn(*shape, like=x, generator=generator(1, x.device))
    scales = torch.tensor(SCALES, dtype=x.dtype, device=x.device).repeat(probes)[:probes]
    try:
        stddev = vae.encode(scales.reshape(-1, *[1] * (x.ndim - 1)) * noise).stddev
    except Exception:  # inputs of such a size may be refused
        return False
    return bool((stddev >= 1).all())


def _kind(subject: Subject) -> Iterator[Item]:
    vae, x = subject.vae, subject.x
    name = "output_kind"
    with torch.no_grad(), quiet(vae):
        likelihood = vae.decode(vae.encode(x).mean)
        outputs = likelihood.mean
        code = None if vae.output_only else probed(vae, x, subject.probes)
    if outputs.shape != x.shape:
        yield Item(name, None, "the output has another shape than the input")
        return
    if isinstance(likelihood, Bernoulli) and code is not None:
        low, high = float(code.min()), float(code.max())
        # the logistic function of numbers in [0, 1] lies in [0.5, 0.7311]
        if low >= 0.4999 and high <= 0.7312 and high - low > 0.05:
            yield Item(
                name,
                False,
                f"probabilities lie in [{low:.3g}, {high:.3g}]: they pass the sigmoid twice",
                "give Bernoulli(probs=...), or wrap with outputs='probabilities'",
            )
            return
    if not isinstance(likelihood, Bernoulli):
        raw_error = float((outputs - x).square().mean())
        sigmoid_error = float((torch.sigmoid(outputs) - x).square().mean())
        outside = float(((outputs < -0.25) | (outputs > 1.25)).double().mean())
        constant = float(x.var()) if x.numel() > 1 else math.inf
        if (
            outside > 0.1
            and sigmoid_error < BETTER * raw_error
            and sigmoid_error < USEFUL * constant
        ):
            low, high = float(outputs.min()), float(outputs.max())
            yield Item(
                name,
                False,
                f"outputs from {low:.3g} to {high:.3g} are logits, taken for a mean: their "
                f"sigmoid has squared error {sigmoid_error:.3g}, they have {raw_error:.3g}",
                "wrap with likelihood='bernoulli', or outputs='logits'",
            )
            return
    yield Item(name, True, "outputs are images as they stand")


def _likelihood(subject: Subject) -> Iterator[Item]:
    vae, x = subject.vae, subject.x
    name = "likelihood_spread"
    with torch.no_grad(), quiet(vae):
        likelihood = vae.decode(vae.encode(x).mean)
    if isinstance(likelihood, PointMass):
        yield Item(name, None, "no likelihood is stated; what needs one is left out")
        return
    if not isinstance(likelihood, Gaussian):
        yield Item(name, True, f"the likelihood is {type(likelihood).__name__}")
        return
    residual = float((likelihood.mean - x).square().mean().sqrt())
    spread = float(likelihood.stddev.square().mean().sqrt())
    fits = residual < FAR * spread
    yield Item(
        name,
        fits,
        f"residuals of {residual:.3g} for a stated spread of {spread:.3g}",
        "" if fits else "wrap with stddev='fit', fit_on=x",
    )


def _finite(subject: Subject) -> Iterator[Item]:
    x = subject.x
    noise = rand(*x.shape, like=x, generator=generator(2, x.device))
    cases = {
        "the inputs": x,
        "black inputs": torch.zeros_like(x[:1]),
        "white inputs": torch.ones_like(x[:1]),
        "noise": noise[:2],
    }
    with torch.no_grad(), quiet(subject.vae):
        faults = [
            words
            for words, case in cases.items()
            if not bool(subject.output(case).isfinite().all())
        ]
    yield Item(
        "finite_outputs",
        not faults,
        f"all outputs are finite in {type_of(subject.vae)}"
        if not faults
        else f"outputs hold a NaN or an infinity in {type_of(subject.vae)} for {', '.join(faults)}",
        ""
        if not faults
        else "run the model in float32 (model.float()), or look for log(0), 0/0 and exp overflow",
    )


def _halves(subject: Subject) -> Iterator[Item]:
    """Finite values in the types that models are deployed in, without judging the model by them."""
    vae, x = subject.vae, subject.x[:2]
    if not getattr(vae, "is_foreign", False) or next(vae.parameters(), None) is None:
        return
    if (
        subject.seconds > SLOW * len(subject.x)
        or vae.dtype == torch.float64
        or type_of(vae) in ("float16", "bfloat16")
    ):
        return
    for dtype in (torch.float16, torch.bfloat16):
        name = f"finite_in_{str(dtype).removeprefix('torch.')}"
        try:
            twin = copy.deepcopy(vae).to(dtype)
            with torch.no_grad(), quiet(twin):
                finite = bool(twin.decode(twin.encode(x).mean).mean.isfinite().all())
        except Exception:  # not every layer runs in half precision on every machine
            continue
        if finite:
            yield Item(name, True, "outputs are finite in this type too")
        else:
            yield Item(name, None, "outputs hold a NaN or an infinity in this type", "use float32")


def _gradient(subject: Subject) -> Iterator[Item]:
    vae = subject.vae
    if not subject.repeats:
        for name in ("gradient_reaches_input", "gradient_matches_differences"):
            yield Item(name, None, "the model draws random numbers inside its calls")
        return
    # a large network is ten times slower in float64
    is_slow = subject.seconds > SLOW * len(subject.x)
    double = None if is_slow else subject.in_double()
    double_subject = double or subject
    # in the backward pass too, where checkpoints run once more and want equal graphs
    with frozen(double_subject.vae):
        result = check_gradient(
            double_subject.output,
            double_subject.x,
            seconds=(2 if double is not None else 1) * subject.seconds,
            is_exact=double is not None,
        )
    yield Item(
        "gradient_reaches_input",
        result.reaches,
        "the gradient reaches the input" if result.reaches else result.message,
        ""
        if result.reaches
        else "remove detach(), no_grad() and rounding on the way, or judge by searches without "
        "gradients",
    )
    if getattr(vae, "is_straight_through", False):
        yield Item(
            "gradient_matches_differences",
            None,
            "gradients pass the quantization of this model straight through, as declared",
            "searches without gradients are needed beside those with them",
        )
        return
    yield Item("gradient_matches_differences", result.agrees, result.message, result.remedy)

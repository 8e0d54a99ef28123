"""All measures of a model in one call, with standard errors."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypedDict, Unpack, final

import torch
from torch import Tensor

from robustvae._options import with_defaults
from robustvae.arguments import checked
from robustvae.certificates import lipschitz_constants
from robustvae.data import Images
from robustvae.data.verbs import reads_inputs
from robustvae.display import Progress
from robustvae.errors import (
    ModelError,
    RangeError,
    RobustVAEError,
    ShapeError,
    UnsupportedError,
    check_choice,
    check_count,
    check_type,
    is_out_of_memory,
    single_line,
)
from robustvae.evaluation.features import frechet_of, train_features
from robustvae.evaluation.latents import active_units, aggregate_terms, encoded, linear_probe
from robustvae.evaluation.likelihood import (
    ROWS,
    judged,
    negative_log_likelihood,
    outputs,
    squared_error,
    unreadable,
)
from robustvae.evaluation.measures import Evaluation, Measure, as_number, restored, stored
from robustvae.evaluation.slopes import decoder_slopes, encoder_slopes, weight_norms
from robustvae.loops import in_turn
from robustvae.metrics import mean_stderr
from robustvae.models import VAE, Bernoulli, ContinuousBernoulli, Distribution
from robustvae.models.checkpoint import environment, weights_sha256
from robustvae.objectives import ELBO
from robustvae.records import SavedState, Store, saving
from robustvae.seeding import draw, shard_generator

SLOPES = 200
"""Most images for the Jacobians."""

LABELED = 10_000
"""Most training images for the probe."""

SHARD = 100
"""Images whose likelihoods are made, and kept, together."""

SCALE = "(0..255)^2 a pixel"


@final
class EvaluationOptions(TypedDict, total=False):
    """Options of `evaluate`, which describes them."""

    inputs: int
    draws: int
    train: Images | None
    parts: Sequence[str] | None
    keep: str | Path | None
    progress: Progress | None
    notice: Callable[[str], None] | None


_DEFAULTS: EvaluationOptions = {
    "inputs": 2000,
    "draws": 1000,
    "train": None,
    "parts": None,
    "keep": None,
    "progress": None,
    "notice": None,
}


@reads_inputs("images", whole=True)
@checked()
def evaluate(
    vae: VAE, images: Images, *, seed: int, **options: Unpack[EvaluationOptions]
) -> Evaluation:
    """Measure a model on images that it has not seen.

    | part | measures |
    |---|---|
    | likelihood | nll: -log p(x) by importance sampling; nll_all: carried over to all images |
    | continuous | nll_continuous: the same, the logits read as a continuous Bernoulli's |
    | reconstruction | mse (of the posterior's mean), mse_sampled, distortion, kl (and by layer) |
    | latents | active_units, encoder_std, index_code, total_correlation, dimension_kl |
    | probe | probe_accuracy: a logistic regression on the codes; wants `train` |
    | frechet | fid_samples, fid_reconstructions, own features; wants `train` |
    | slopes | encoder_slope, decoder_slope: Frobenius norms of Jacobians |
    | lipschitz | encoder_lipschitz, decoder_lipschitz: verified, of the models that are covered |
    | weights | encoder_weights, decoder_weights: l2 norms |

    Warning:
        `nll` is an upper bound in expectation. `nll_all` is the -ELBO (one draw) of all images less
        its mean gap to `nll` on the images chosen: the gap varies little from image to image, so
        this is the closer estimate for the whole set where few were chosen. Fréchet distances are
        in the features of a network that is trained here, on `train`: they compare with each other
        only.

    Args:
        vae: Any model.
        images: To judge by, of any kind that `as_images` reads.
        seed: Decides the images and all draws.
        options: Any of

            - inputs: Images, balanced over the classes, 2000 by default; all of them if there are
              fewer. The aggregate posterior runs over all the images (at most 10,000), the
              Jacobians over 200;
            - draws: k of the likelihood, 1000 by default;
            - train: Images to learn probe and features from; without them those parts are absent;
            - parts: Which rows of the table; None for all but "continuous";
            - keep: Folder that finished parts are written to as they come, and the likelihoods,
              which take longest, 100 images at a time; run again, a stopped evaluation of the same
              weights, images and draws takes them from there;
            - progress: Called with (steps done, steps in all, the part under way);
            - notice: Told in a sentence that a stopped evaluation goes on, or that a part that was
              kept is damaged and measured again.

    Returns:
        An `Evaluation`. Images for which the model raises, where it does not for others, are left
        out: `facts["failures"]` has the reason by the image's number.

    Raises:
        UnknownOptionError: An option of another name.
        UnknownNameError: No such part.
        RangeError: A count below 1, or a single image.
        ShapeError: Images that the model does not read.
        NonFiniteError: Weights that are not finite.

    References:
        Burda et al., 2016; Chen et al., 2018; [Kuzina22] Table 7; [Camuto21] Fig. 9c-d;
        [Willetts21] Table 1; [Barrett22] appendix B.

    Examples:
        >>> import robustvae as rv
        >>> images = rv.data.load("digits", split="test")
        >>> vae = rv.load("digits-vae")
        >>> found = rv.evaluate(vae, images, inputs=20, draws=50, parts=["likelihood"], seed=0)
        >>> found["nll"].n
        20
    """
    settings = with_defaults(evaluate, options, _DEFAULTS)
    inputs, draws = settings["inputs"], settings["draws"]
    train, parts, progress = settings["train"], settings["parts"], settings["progress"]
    check_type(vae, "vae", VAE)
    check_type(images, "images", Images)
    _check_fits(vae, images, "images")
    check_count(inputs, "inputs", least=2)
    check_count(draws, "draws")
    if train is not None:
        check_type(train, "train", Images)
        _check_fits(vae, train, "train")
    if parts is None:
        parts = [part for part in PARTS if part != "continuous"]
    check_type(parts, "parts", Sequence)
    for part in parts:
        check_choice("part", part, PARTS)
    if len(images) < 2:
        raise RangeError("a standard error wants at least two images, got one")
    start = time.perf_counter()
    bench = _Bench(vae, images, train, seed, inputs, draws, settings["keep"])
    notice = settings["notice"] or (lambda _: None)
    progress = progress or (lambda done, total, words: None)
    try:
        bench.leave_out(bench.store.read("failures") or {})
        bench.measure(parts, progress, notice)
    except _InputsFailed as found:
        bench.store.keep("failures", found.reasons, notice)
        bench.leave_out(found.reasons)
        bench.measure(parts, progress, notice)
    facts = {
        "data": images.name,
        "split": images.split,
        "available": len(images),
        "inputs": len(bench.x),
        "draws": draws,
        "seed": seed,
        "sha256": weights_sha256(vae),
        "environment": environment(vae),
        "failures": bench.failures,
        "seconds": round(time.perf_counter() - start, 1),
    }
    return Evaluation(tuple(bench.measures), bench.absent, bench.per_image, facts)


class _InputsFailed(Exception):
    """Some images raise where others do not: the rest is measured without them."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__(f"{len(reasons)} images failed")
        self.reasons = reasons


class _Bench:
    """The model, the images, and what has been found so far."""

    def __init__(
        self,
        vae: VAE,
        images: Images,
        train: Images | None,
        seed: int,
        inputs: int,
        draws: int,
        keep: str | Path | None,
    ) -> None:
        self.vae, self.seed, self.draws = vae, seed, draws
        rows = images.choose(
            min(inputs, len(images)), stratified=True, generator=self.generator("images")
        )
        self.x, self.y = self._placed(images[rows].x), images.y[rows]
        self.all = images
        others = None if train is None else (train.name, train.split, len(train))
        content = hashlib.sha256(self.x.cpu().double().numpy().tobytes()).hexdigest()
        about = (images.name, images.split, len(images), others, rows.tolist(), content)
        # of another version or another number of threads the last digits may differ
        question = (weights_sha256(vae), environment(vae), *about, seed, draws)
        key = hashlib.sha256(json.dumps(question).encode()).hexdigest()
        # without weights one model cannot be told from another
        self.store = Store(keep if question[0] else None, key)
        self.train = train
        self.notice: Callable[[str], None] = lambda _: None
        self.tell: Callable[[str], None] = lambda _: None
        self.done = 0
        self.measures: list[Measure] = []
        self.absent: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self.per_image: dict[str, list[float]] = {"index": rows.tolist()}

    def leave_out(self, failures: dict[str, str]) -> None:
        """Go on without the images of these numbers, for which the model raises."""
        if not failures:
            return
        numbers = self.per_image["index"]
        places = [i for i, row in enumerate(numbers) if str(int(row)) not in failures]
        others = [row for row in range(len(self.all)) if str(row) not in failures]
        self.x, self.y, self.all = self.x[places], self.y[places], self.all[torch.tensor(others)]
        self.measures, self.absent, self.failures = [], {}, failures
        self.per_image = {"index": [numbers[i] for i in places]}
        text = json.dumps([self.store.key, sorted(failures)])
        self.store = Store(self.store.folder, hashlib.sha256(text.encode()).hexdigest())

    def measure(
        self, parts: Sequence[str], progress: Progress, notice: Callable[[str], None]
    ) -> None:
        """Measure the parts that are not kept, and keep them."""
        steps = {part: self._steps(part) for part in parts}
        total = sum(steps.values())
        self.tell = lambda words: progress(min(self.done, total - 1), total, words)
        before = {part: content for part in parts if (content := self.store.read(part))}
        if before:
            words = f"going on with {len(before)} of {len(parts)} parts that this run left in"
            notice(f"{words} {self.store.folder}")
        self.notice = notice
        for part in parts:
            if part not in before:
                self.done = sum(steps[one] for one in parts[: parts.index(part)])
                self.tell(part)
                content = self._measured(part)
                if content is None:  # not kept: with more memory it may be measured
                    self.absent[part] = "memory ran out: free some, or ask for fewer inputs"
                else:
                    self.store.keep(part, content, notice)
                continue
            content = before[part]
            self.measures += [restored(fields) for fields in content["measures"]]
            self.absent.update(content["absent"])
            numbers = content["per_image"].items()
            self.per_image.update({key: [*map(as_number, values)] for key, values in numbers})
        for name in self.store.damaged:
            notice(f"{name} was damaged and is measured again")

    def _kept(self, name: str) -> AbstractContextManager[None]:
        """Within: the loops of a part, which are saved from time to time."""
        state = SavedState(self.store, name)
        if state.steps:
            self.notice(f"going on within {name}")
        return saving(state, "loops")

    def _steps(self, part: str) -> int:
        """How many steps a part has, for the progress; the likelihoods take longest."""
        return -(-len(self.x) // SHARD) + 1 if part in ("likelihood", "continuous") else 1

    def _measured(self, part: str) -> dict[str, Any] | None:
        """What one part adds; None where memory does not suffice for it."""
        count, keys = len(self.measures), {*self.per_image}
        try:
            with self._kept(part):
                PARTS[part](self)
        except UnsupportedError as error:
            self.absent[part] = str(error)
        except Exception as error:  # a stranger's code may raise anything, in a backward pass too
            if is_out_of_memory(error):
                del self.measures[count:]
                for key in self.per_image.keys() - keys:
                    del self.per_image[key]
                return None
            if not self.failures:
                failures = unreadable(self.vae, self.all)
                if any(str(row) not in failures for row in self.per_image["index"]) and failures:
                    raise _InputsFailed(failures) from error
            is_foreign = getattr(self.vae, "is_foreign", False)
            if isinstance(error, ModelError) and is_foreign:
                self.absent[part] = single_line(error)
            elif isinstance(error, RobustVAEError) or not is_foreign:
                raise
            else:
                self.absent[part] = f"the model raised {type(error).__name__}: {single_line(error)}"
        return {
            "measures": [stored(measure) for measure in self.measures[count:]],
            "absent": {part: self.absent[part]} if part in self.absent else {},
            "per_image": {key: self.per_image[key] for key in self.per_image if key not in keys},
        }

    def generator(self, purpose: str) -> torch.Generator:
        return shard_generator(self.seed, 0, purpose)

    def likelihood(self) -> None:
        label = f"-log p(x), importance sampling, k = {self.draws}"
        nll = self._log_likelihoods("nll", None)
        self.add("nll", label, nll, "nats")
        total = len(self.all)
        if len(self.x) == total:
            return
        noise = self.generator("elbo of all")

        def losses(start: int) -> Tensor:
            return self._elbo(self._placed(self.all[start : start + ROWS].x), noise)["loss"]

        starts = range(0, total, ROWS)
        elbo, error = mean_stderr(torch.cat(in_turn("elbo of all", starts, losses, noise)))
        loss = self._elbo(self.x, self.generator("elbo"))["loss"]
        gap, gap_error = mean_stderr(loss.double().cpu() - nll)
        label = f"-log p(x) of all: their -ELBO less its mean gap to -log p(x) on {len(nll)}"
        self.add_one("nll_all", label, elbo - gap, "nats", math.hypot(error, gap_error), total)

    def continuous(self) -> None:
        label = f"-log p(x), logits as a continuous Bernoulli's, k = {self.draws}"
        nll = self._log_likelihoods("nll_continuous", _as_continuous)
        self.add("nll_continuous", label, nll, "nats")

    def _log_likelihoods(
        self, key: str, read: Callable[[Distribution], Distribution] | None
    ) -> Tensor:
        shards = []
        before = [self.store.read(f"{key}-{number}") for number in range(-(-len(self.x) // SHARD))]
        count = sum(values is not None for values in before)
        if count:
            self.notice(f"going on with {count} of {len(before)} ranges of {key}")
        for number, x in enumerate(self.x.split(SHARD)):
            self.tell(f"{key} of images {number * SHARD + 1} to {number * SHARD + len(x)}")
            self.done += 1
            values = before[number]
            if values is None:
                noise = shard_generator(self.seed, number, "likelihood")
                with self._kept(f"{key}-{number}"):
                    values = negative_log_likelihood(
                        self.vae, x, draws=self.draws, read=read, generator=noise
                    ).tolist()
                self.store.keep(f"{key}-{number}", values, self.notice)
            shards += [as_number(value) for value in values]
        return torch.tensor(shards, dtype=torch.float64)

    def reconstruction(self) -> None:
        for key, what in (("mse", "the mean"), ("mse_sampled", "a draw")):
            draws = self.generator(key)
            error = squared_error(self.vae, self.x, sampled=key != "mse", generator=draws)
            self.add(
                key, f"squared error, reconstructed from {what} of the posterior", error, SCALE
            )
        terms = self._elbo(self.x, self.generator("elbo"))
        layers = [key for key in terms if key.startswith("kl_")]
        self.add("negative_elbo", "-ELBO, one draw", terms["loss"], "nats")
        self.add(
            "distortion", "-log p(x|z), z a draw of the posterior", terms["distortion"], "nats"
        )
        self.add("kl", "KL(q(z|x) | p(z))", terms["kl"], "nats")
        for key in layers:
            self.add(key, f"KL of layer {key[3:]}, counted from the data", terms[key], "nats")

    def _elbo(self, x: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
        with torch.no_grad(), judged(self.vae):
            batches = [ELBO().terms(self.vae, part, generator=noise) for part in x.split(ROWS)]
        return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}

    def latents(self) -> None:
        mean, stddev = encoded(self.vae, self.x)
        active = int(active_units(mean).sum())
        label = f"coordinates with Var(E[z|x]) > 0.01, of {self.vae.latent}"
        self.add_one("active_units", label, float(active), "coordinates", n=len(mean))
        self.add("encoder_std", "mean over coordinates of sigma(x)", stddev.mean(1), "latent units")
        x = self._placed(self.all[:LABELED].x)
        draws = self.generator("aggregate")
        terms = aggregate_terms(self.vae, x, draws=min(1000, len(x)), generator=draws)
        for key, label in (
            ("index_code", "information of the code on the image's index"),
            ("total_correlation", "total correlation of the aggregate posterior"),
            ("dimension_kl", "sum over coordinates of KL(q(z_j) | p(z_j))"),
        ):
            label = f"{label}, aggregate of {len(x):,} images"
            value, stderr = mean_stderr(terms[key])
            self.add_one(key, label, value, "nats", stderr, len(terms[key]))

    def probe(self) -> None:
        train = self._labeled("probe")
        if len(train.y.unique()) < 2:
            raise UnsupportedError("a probe wants labels of at least two classes, got one")
        codes, _ = encoded(self.vae, self._placed(train.x))
        right = linear_probe(
            codes.cpu(), train.y.cpu(), encoded(self.vae, self.x)[0].cpu(), self.y.cpu()
        )
        label = f"logistic regression on posterior means, {len(train):,} training images"
        self.add("probe_accuracy", label, right.double(), "share")

    def frechet(self) -> None:
        train = self._labeled("frechet")
        with torch.no_grad(), judged(self.vae):
            draws = self.generator("samples")
            z = draw(self.vae.prior(), (len(self.x),), generator=draws)
            samples = torch.cat([outputs(self.vae, part) for part in z.split(ROWS)])
            again = [outputs(self.vae, self.vae.encode(x).mean) for x in self.x.split(ROWS)]
        features = train_features(train, generator=self.generator("features"))
        kind = next(features.parameters())
        for key, fake, what in (
            ("fid_samples", samples, "decoded draws of the prior"),
            ("fid_reconstructions", torch.cat(again), "reconstructions"),
        ):
            real, fake = (part.to(kind).clamp(0, 1) for part in (self.x, fake))
            value, stderr = frechet_of(real, fake, features, folds=min(10, len(real) // 2))
            label = f"Fréchet distance of {what}, own features"
            self.add_one(key, label, value, "feature units squared", stderr, len(real))

    def slopes(self) -> None:
        few = self.x[:SLOPES]
        unit = "latent units a pixel unit"
        self.add(
            "encoder_slope",
            "Frobenius norm, Jacobian of mu(x)",
            encoder_slopes(self.vae, few),
            unit,
        )
        unit = "pixel units a latent unit"
        self.add(
            "decoder_slope",
            "Frobenius norm, Jacobian of g(mu(x))",
            decoder_slopes(self.vae, few),
            unit,
        )

    def lipschitz(self) -> None:
        constants = lipschitz_constants(self.vae)
        for key, value, what in (
            ("encoder_lipschitz", constants.b, "the encoder's mean"),
            ("decoder_lipschitz", constants.a, "the decoder's mean"),
        ):
            self.add_one(
                key, f"verified Lipschitz constant of {what}, upper bound", value, "l2 by l2"
            )

    def weights(self) -> None:
        for key, value in zip(("encoder", "decoder"), weight_norms(self.vae), strict=True):
            label = f"l2 norm of the {key}'s weights and biases"
            self.add_one(f"{key}_weights", label, value, "weight units")

    def add(self, key: str, label: str, values: Tensor, unit: str) -> None:
        mean, stderr = mean_stderr(values)
        self.measures.append(Measure(key, label, mean, stderr, len(values), unit))
        self.per_image[key] = [float(f"{value:.6g}") for value in values.tolist()]

    def add_one(
        self,
        key: str,
        label: str,
        value: float,
        unit: str,
        stderr: float | None = None,
        n: int = 0,
    ) -> None:
        self.measures.append(Measure(key, label, value, stderr, n, unit))

    def _placed(self, x: Tensor) -> Tensor:
        return x.to(device=self.vae.device, dtype=self.vae.dtype)

    def _labeled(self, part: str) -> Images:
        if self.train is None:
            raise UnsupportedError(f"{part} wants training images, got train=None")
        count = min(LABELED, len(self.train))
        draws = self.generator("labeled")
        return self.train[self.train.choose(count, stratified=True, generator=draws)]


def _check_fits(vae: VAE, images: Images, name: str) -> None:
    if tuple(images.image_shape) != tuple(vae.image_shape):
        raise ShapeError(f"{name} must be of {vae.image_shape}, got {images.image_shape}")


def _as_continuous(likelihood: Distribution) -> Distribution:
    if not isinstance(likelihood, Bernoulli | ContinuousBernoulli):
        raise UnsupportedError(f"a Bernoulli likelihood is needed, got {type(likelihood).__name__}")
    return ContinuousBernoulli(likelihood.logits)


PARTS: dict[str, Callable[[_Bench], None]] = {
    "likelihood": _Bench.likelihood,
    "continuous": _Bench.continuous,
    "reconstruction": _Bench.reconstruction,
    "latents": _Bench.latents,
    "probe": _Bench.probe,
    "frechet": _Bench.frechet,
    "slopes": _Bench.slopes,
    "lipschitz": _Bench.lipschitz,
    "weights": _Bench.weights,
}
"""What `evaluate` can measure."""

"""Certified scores and decisions of a smoothed victim: intervals, AUROC, expectations (ours)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack, final

import torch
from torch import Tensor

from robustvae._options import with_defaults
from robustvae.arguments import checked
from robustvae.certificates.certificate import check_complete
from robustvae.certificates.curves import by_input, quantile_ends, samplers_of, sorted_sizes
from robustvae.certificates.methods.base import chunks
from robustvae.certificates.methods.sampling import Sampler, Statistic
from robustvae.certificates.methods.smoothing import shifted_level
from robustvae.data.verbs import reads_inputs
from robustvae.defenses import Victim
from robustvae.defenses.independence import (
    check_batch,
    check_rows_alone,
    check_score,
    noise_of,
)
from robustvae.display import three_lines
from robustvae.errors import (
    ConfigError,
    RangeError,
    ShapeError,
    UnsupportedError,
    check_choice,
    check_count,
    check_probability,
    check_type,
)
from robustvae.loops import in_turn
from robustvae.metrics import clopper_pearson
from robustvae.records import failures_of
from robustvae.registry import build
from robustvae.scores import ContrastError, ReconstructionError, Score

Attacked = Literal["both", "anomalies", "normals"]


@final
@three_lines()
@dataclass(frozen=True, eq=False, repr=False)
class ScoreBounds:
    """Intervals that no change of each size moves a smoothed score's quantile out of.

    Attributes:
        sizes: l2 sizes, (K,), rising.
        lower: Lower ends, (B, K), float64.
        upper: Upper ends, (B, K), float64; infinite where the draws do not suffice.
        clean: Lower and upper ends without any change, (2, B).
        confidence: With which all ends of one input hold together.
        confidence_of_all: With which those of all B inputs do.
        quantile: Which quantile of the score over the victim's randomness.
        status: "ok" for each input, or "failed: " and what the victim raised for it: then its ends
            are NaN, and it counts against AUROC and TPR.

    Examples:
        >>> import robustvae as rv
        >>> vae, x = rv.load("digits-vae"), rv.data.load("digits", split="test").x[:2]
        >>> smooth = rv.Victim(vae, rv.InputNoise(stddev=0.1))
        >>> bounds = rv.certify_score(smooth, x, sizes=[0.1], draws=500, generator=rv.generator(0))
        >>> bool((bounds.lower <= bounds.upper).all()), bounds.lower.shape
        (True, torch.Size([2, 1]))
    """

    sizes: Tensor
    lower: Tensor
    upper: Tensor
    clean: Tensor
    confidence: float
    confidence_of_all: float
    quantile: float
    status: tuple[str, ...] = ()

    @property
    def failures(self) -> dict[int, str]:
        """Why inputs failed, by their place."""
        return failures_of(self.status)

    def check_complete(self) -> None:
        """Raise `ModelError` where an input failed."""
        check_complete(self.status)

    def __repr__(self) -> str:
        """Three lines: what is bounded, how surely, how far."""
        widths = (self.upper - self.lower).nanmean(0)
        failures = f", {len(self.failures)} failed" if self.failures else ""
        return (
            f"ScoreBounds: {len(self.lower)} inputs, {len(self.sizes)} sizes up to "
            f"{float(self.sizes[-1]):g} (l2), quantile {self.quantile:g}{failures}\n"
            f"  probabilistic, confidence {self.confidence:g} for each input, "
            f"{self.confidence_of_all:g} for all\n"
            f"  mean width from {float(widths[0]):.3g} to {float(widths[-1]):.3g}"
        )


@final
class ScoreOptions(TypedDict, total=False):
    """Options of `certify_score`, which describes them."""

    confidence: float
    draws: int
    all_inputs: bool
    rows: Sequence[int] | None


@final
class ExpectationOptions(TypedDict, total=False):
    """Options of `certify_expectation`, which describes them."""

    levels: int
    confidence: float
    draws: int
    rows: Sequence[int] | None


_SCORE: ScoreOptions = {"confidence": 0.999, "draws": 10_000, "all_inputs": False, "rows": None}
_EXPECTATION: ExpectationOptions = {
    "levels": 50,
    "confidence": 0.999,
    "draws": 10_000,
    "rows": None,
}


@reads_inputs("x")
@checked()
def certify_score(
    victim: Victim,
    x: Tensor,
    score: Any = "anomaly-score",
    sizes: Sequence[float] = (0.1, 0.25, 0.5, 1.0),
    *,
    generator: torch.Generator,
    quantile: float = 0.5,
    **options: Unpack[ScoreOptions],
) -> ScoreBounds:
    """How far a smoothed score can be moved by changes of each size: an interval for each input.

    With F the distribution of the score at the input, its q-quantile at a change of size rho stays
    within [F^-1(Phi(Phi^-1(q) - rho / s)), F^-1(Phi(Phi^-1(q) + rho / s))]. The reconstruction
    error reads the changed input besides its noisy reconstruction: by the triangle inequality both
    ends move by rho more, the lower one to 0 at most; of a squared error the ends are squared. Of
    the contrast error rho is how far the input of raised contrast moves.

    Warning:
        It speaks of the population quantile of the score under noise. A deployed median of k draws
        strays from it by chance: see `median_probability`.

    Args:
        victim: With noise on its input: `Victim(vae, InputNoise(stddev))`.
        x: Images in [0, 1], (B, C, H, W), or whatever `as_images` reads.
        score: A registered score or spec ("anomaly-score", the l2 norm of the error), an object
            of that family, or a function of the victim's outputs (n, C, H, W) to numbers (n,).
        sizes: l2 sizes of the change in pixel units, K of them, at least 0; sorted by us.
        generator: Of which one number is spent; all draws follow from it.
        quantile: q, in (0, 1); the median by default.
        options: Any of

            - confidence: With which all ends of one input hold, in (0, 1), 0.999 by default;
            - draws: Of each input, shared by all sizes, 10,000 by default;
            - all_inputs: Give every input 1 / B of the failure probability, so that the ends of
              all inputs hold together with `confidence`; False by default;
            - rows: The inputs' own numbers, from which their draws follow; None for their content.

    Returns:
        `ScoreBounds`. An input for which the victim or the score raises, where they do not for
        all, has NaN for its ends and the reason in `failures`.

    Raises:
        UnknownOptionError: An option of another name.
        UnsupportedError: A victim without noise on its input, whose rows are not independent, or a
            score that reads the input in another way.
        RangeError: A number out of range.
        Exception: What the victim or the score raises for every input.

    References:
        docs/theory.md, "Smoothing"; Chiang et al., 2020 (percentiles).

    Examples:
        >>> import robustvae as rv
        >>> vae, x = rv.load("digits-vae"), rv.data.load("digits", split="test").x[:2]
        >>> smooth = rv.Victim(vae, rv.InputNoise(stddev=0.1))
        >>> bounds = rv.certify_score(smooth, x, score="anomaly-score", sizes=[0.1, 0.2],
        ...     draws=500, generator=rv.generator(0))
        >>> bool((bounds.lower >= 0).all())
        True
    """
    settings = with_defaults(certify_score, options, _SCORE)
    confidence, draws, all_inputs = (
        settings["confidence"],
        settings["draws"],
        settings["all_inputs"],
    )
    check_probability(quantile, "quantile")
    check_probability(confidence, "confidence")
    check_type(all_inputs, "all_inputs", bool)
    ranking = sorted_sizes(sizes)
    function = build("score", score) if not callable(score) else score
    samplers = samplers_of(victim, x, generator, settings["rows"], draws)
    error = function if isinstance(function, ReconstructionError | ContrastError) else None
    # two ends of every size, and of no change
    ends = 2 * (len(ranking) + 1)
    chance = (1 - confidence) / ends / (len(x) if all_inputs else 1)
    measured = ReconstructionError() if isinstance(error, ReconstructionError) else function

    def measure(sampler: Sampler) -> list[Tensor]:
        sizes = [0.0, *ranking]
        if isinstance(error, ContrastError):  # what the victim reads moves so far
            sizes = [error.moved(size, sampler.x) for size in sizes]
        places = [quantile_ends(sampler, quantile, size, draws, chance) for size in sizes]
        lower, upper = [], []
        with sampler.running():
            for i, g in enumerate(sampler.generators("smoothing/score")):
                values = _values(measured, sampler, i, draws, g)
                # a score that is no number may be anything: the worst at both ends
                floors = values.where(~values.isnan(), -math.inf).sort().values
                roofs = values.where(~values.isnan(), math.inf).sort().values
                low, high = [], []
                for (below, above), size in zip(places, sizes, strict=True):
                    # the error reads the changed input, too: the triangle inequality pays for it
                    shift = size if error else 0.0
                    low.append(-math.inf if below is None else float(floors[below - 1]) - shift)
                    high.append(math.inf if above is None else float(roofs[above - 1]) + shift)
                lower.append(low)
                upper.append(high)
        return [torch.tensor(ends, dtype=torch.float64) for ends in (lower, upper)]

    (least, uppers), status = by_input(len(x), samplers, measure)
    if error is not None:
        least = least.clamp_min(0)
        if getattr(error, "squared", False):
            least, uppers = least.square(), uppers.square()
    each = 1 - (1 - confidence) / (len(x) if all_inputs else 1)
    return ScoreBounds(
        sizes=torch.tensor(ranking, dtype=torch.float64),
        lower=least[:, 1:],
        upper=uppers[:, 1:],
        clean=torch.stack([least[:, 0], uppers[:, 0]]),
        confidence=each,
        confidence_of_all=max(0.0, 1 - len(x) * (1 - each)),
        quantile=quantile,
        status=status,
    )


def _values(
    score: Callable[..., Any], sampler: Sampler, i: int, count: int, g: torch.Generator
) -> Tensor:
    """Draws of the score at input i, (count,), float64."""
    if not _is_score(score):
        return _numbers(score, sampler, i, count, g)
    is_error = isinstance(score, ReconstructionError | ContrastError)
    if not is_error and getattr(score, "reads_input", True):
        raise UnsupportedError(
            f"the score {type(score).__name__} reads the changed input besides what the victim "
            "makes of it, which smoothing does not cover: use 'anomaly-score', 'contrast-error', a "
            "score with reads_input = False, or a function of the output"
        )

    def run(rows: Tensor, generator: torch.Generator) -> Tensor:
        return _checked(lambda x: score(sampler.victim, x, generator=generator))(rows)

    if i == 0:
        check_score(run, sampler.x[:1], noise_of(sampler.victim).stddev, sampler.at_once)

    def some(n: int) -> Tensor:
        sampler.independence.check_generator(i, g)
        rows = sampler.x[i : i + 1].expand(n, *sampler.x.shape[1:])
        return score(sampler.victim, rows, generator=g).detach().double().cpu()

    counts = [*chunks(count, sampler.at_once)]
    values = torch.cat(in_turn("scores", counts, some, g, sampler.x[i]))
    sampler.check(values)
    return values


def _numbers(
    function: Callable[[Tensor], Any], sampler: Sampler, i: int, count: int, g: torch.Generator
) -> Tensor:
    """Draws of a function of the output alone, (count,), float64."""
    statistic = _checked(function)
    if i == 0:
        generator, *_ = sampler.generators("smoothing/rows of a score")
        subject = "smoothing needs draws of one law, and this score"
        check_rows_alone(subject, statistic, sampler.outputs(i, 4, generator))
        check_batch(subject, statistic, sampler.outputs(i, sampler.at_once, generator))
    return sampler.numbers(statistic, i, count, g)


def _is_score(score: Callable[..., Any]) -> bool:
    """Whether it is called as scores are, (victim, x, *, generator), not with outputs alone."""
    return isinstance(score, Score) and "generator" in inspect.signature(score).parameters


def _checked(function: Callable[..., Any]) -> Statistic:
    """The function, which must give one number for each output."""

    def statistic(output: Tensor) -> Tensor:
        values: Tensor = function(output)
        if not isinstance(values, Tensor) or values.shape != (len(output),):
            actual = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ShapeError(
                f"a score must return one number for each of {len(output)} outputs, got {actual}"
            )
        return values

    return statistic


@checked()
def median_probability(votes: int, chance: float) -> float:
    """P that the median of `votes` independent scores stays on the side that one score stays on.

    The median of an odd number of draws does if more than half of them do, so no root of the votes
    is lost: certify single draws and deploy their median.

    Args:
        votes: How many scores the system takes the median of; odd.
        chance: With which a single score stays there, such as Phi(Phi^-1(F(h)) - rho / s) for a
            bound h, in (0, 1).

    Raises:
        RangeError: An even number of votes, or a chance out of range.

    Examples:
        >>> from robustvae.certificates import median_probability
        >>> round(median_probability(3, 0.9), 3)
        0.972
    """
    from scipy.special import bdtrc

    check_count(votes, "votes")
    check_probability(chance, "chance")
    if votes % 2 == 0:
        raise RangeError(f"votes must be odd, so that there is a median, got {votes}")
    return float(bdtrc((votes - 1) // 2, votes, chance))


@checked()
def certified_auroc(
    normal: ScoreBounds, anomalous: ScoreBounds, attacked: Attacked = "both"
) -> Tensor:
    """Share of the pairs (normal, anomaly) that no attack of each size puts in the wrong order.

    A pair counts where the anomaly's lower end lies above the normal's upper end; ties lose. All of
    it holds with probability normal.confidence_of_all + anomalous.confidence_of_all - 1: ask
    `certify_score` with `all_inputs=True` and half the failure probability for each side.

    Args:
        normal: Of normal inputs.
        anomalous: Of anomalies, at the same sizes.
        attacked: "both", or one side alone: "anomalies" (evasion) or "normals" (false alarm); the
            other side's ends are those without a change.

    Returns:
        AUROC for each size, (K,), float64, from 0 to 1.

    Raises:
        ConfigError: Other sizes or another quantile on the two sides.

    Examples:
        >>> import torch
        >>> from robustvae.certificates import ScoreBounds, certified_auroc
        >>> def about(value):
        ...     ends = torch.tensor([[value - 1.0], [value + 1.0]])
        ...     return ScoreBounds(torch.ones(1), ends[:1], ends[1:], ends, 0.999, 0.999, 0.5)
        >>> float(certified_auroc(about(1.0), about(4.0))[0])
        1.0
    """
    check_choice("attacked side", attacked, ("both", "anomalies", "normals"))
    high, low = _ends(normal, anomalous, attacked)
    return (low[None, :, :] > high[:, None, :]).double().mean((0, 1))


@checked()
def certified_tpr(
    normal: ScoreBounds, anomalous: ScoreBounds, fpr: float = 0.05, attacked: Attacked = "both"
) -> Tensor:
    """Share of anomalies that no attack of each size hides, at a threshold of a fixed FPR.

    The threshold is chosen on clean normals: the least one that at most `fpr` of their upper ends
    without a change lie above; where normals are attacked too, of their attacked upper ends.

    Args:
        normal: Of normal inputs.
        anomalous: Of anomalies, at the same sizes.
        fpr: False positive rate allowed, in (0, 1).
        attacked: As in `certified_auroc`.

    Returns:
        True positive rate for each size, (K,), float64.

    Examples:
        >>> import torch
        >>> from robustvae.certificates import ScoreBounds, certified_tpr
        >>> def about(value):
        ...     ends = torch.tensor([[value - 1.0], [value + 1.0]])
        ...     return ScoreBounds(torch.ones(1), ends[:1], ends[1:], ends, 0.999, 0.999, 0.5)
        >>> float(certified_tpr(about(1.0), about(4.0))[0])
        1.0
    """
    check_probability(fpr, "fpr")
    check_choice("attacked side", attacked, ("both", "anomalies", "normals"))
    high, low = _ends(normal, anomalous, attacked)
    limit = int(fpr * len(high))
    threshold = high.sort(0).values[len(high) - 1 - limit]
    return (low > threshold[None, :]).double().mean(0)


def _ends(normal: ScoreBounds, anomalous: ScoreBounds, attacked: str) -> tuple[Tensor, Tensor]:
    """Upper ends of the normals and lower ends of the anomalies, (N, K) each."""
    for name, bounds in (("normal", normal), ("anomalous", anomalous)):
        check_type(bounds, name, ScoreBounds)
    same = torch.equal(normal.sizes, anomalous.sizes) and normal.quantile == anomalous.quantile
    if not same:
        raise ConfigError("both sides must have the same sizes and quantile: certify them alike")
    high = normal.upper if attacked != "anomalies" else normal.clean[1][:, None]
    low = anomalous.lower if attacked != "normals" else anomalous.clean[0][:, None]
    sizes = len(normal.sizes)
    return high.expand(-1, sizes), low.expand(-1, sizes)


@final
@three_lines(floor=("lower",))
@dataclass(frozen=True, eq=False, repr=False)
class ExpectedScore:
    """Lower bounds on the mean of a bounded score under changes of each size.

    Attributes:
        sizes: l2 sizes, (K,), rising.
        lower: Lower bounds on E[score], (B, K), float64.
        mean: Its mean over the draws at the input itself, (B,).
        confidence: With which all bounds of one input hold together.
        status: "ok" for each input, or "failed: " and why: then its numbers are NaN.
    """

    sizes: Tensor
    lower: Tensor
    mean: Tensor
    confidence: float
    status: tuple[str, ...] = ()

    @property
    def failures(self) -> dict[int, str]:
        """Why inputs failed, by their place."""
        return failures_of(self.status)


@checked()
def certify_expectation(
    victim: Victim,
    x: Tensor,
    score: Callable[[Tensor, Tensor], Tensor],
    sizes: Sequence[float],
    *,
    generator: torch.Generator,
    **options: Unpack[ExpectationOptions],
) -> ExpectedScore:
    """How low the mean of a score in [0, 1] can be brought by changes of each size.

    E[f] >= sum_k (t_k - t_{k-1}) Phi(Phi^-1(P(f > t_k)) - rho / s), with Clopper-Pearson at
    `levels` fixed levels t_k: a step function below the integral of P(f > t).

    Args:
        victim: With noise on its input: `Victim(vae, InputNoise(stddev))`.
        x: Images in [0, 1], (B, C, H, W).
        score: Of outputs (n, C, H, W) and the victim's own mean output (n, C, H, W) at the input,
            to numbers in [0, 1], (n,): such as MS-SSIM.
        sizes: l2 sizes of the change in pixel units, K of them.
        generator: Of which one number is spent.
        options: Any of levels, 50 by default; confidence, of all bounds of one input, in (0, 1),
            0.999 by default; draws, of each input, 10,000 by default; and rows, the inputs' own
            numbers, None for their content.

    Raises:
        UnknownOptionError: An option of another name.
        RangeError: A score outside [0, 1], or another number out of range.
        UnsupportedError: A victim without noise on its input.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.certificates import certify_expectation
        >>> vae, x = rv.load("digits-vae"), rv.data.load("digits", split="test").x[:1]
        >>> smooth = rv.Victim(vae, rv.InputNoise(stddev=0.1))
        >>> near = lambda a, b: (-(a - b).flatten(1).norm(dim=1)).exp()
        >>> found = certify_expectation(smooth, x, near, [0.1], draws=500,
        ...     generator=rv.generator(0))
        >>> bool(found.lower[0, 0] < found.mean[0])
        True
    """
    settings = with_defaults(certify_expectation, options, _EXPECTATION)
    levels, confidence, draws = settings["levels"], settings["confidence"], settings["draws"]
    check_count(levels, "levels")
    check_probability(confidence, "confidence")
    ranking = sorted_sizes(sizes)
    samplers = samplers_of(victim, x, generator, settings["rows"], draws)
    grid = torch.linspace(0, 1, levels + 1, dtype=torch.float64)[1:]
    chance = (1 - confidence) / levels

    def measure(sampler: Sampler) -> list[Tensor]:
        centers = sampler.centers("own").to(x.dtype)
        lower, means = [], []
        with sampler.running():
            for i, g in enumerate(sampler.generators("smoothing/expectation")):
                own = centers[i : i + 1]

                def against(output: Tensor, own: Tensor = own) -> Tensor:
                    return score(output, own.expand_as(output))

                values = _numbers(against, sampler, i, draws, g)
                if not bool(((values >= 0) & (values <= 1)).all()):
                    raise RangeError("the score must lie in [0, 1] for every output: scale it")
                above = (values[:, None] > grid).sum(0)
                low = clopper_pearson(above, draws, 1 - chance, sides=1)[0]
                # the same levels for every size: no further split
                lower.append(
                    [
                        sum(shifted_level(p, size, sampler, up=False) for p in low if p > 0)
                        / levels
                        for size in ranking
                    ]
                )
                means.append(float(values.mean()))
        return [torch.tensor(columns, dtype=torch.float64) for columns in (lower, means)]

    (bounds, means), status = by_input(len(x), samplers, measure)
    return ExpectedScore(
        torch.tensor(ranking, dtype=torch.float64), bounds, means, confidence, status
    )

"""[Kuzina22] section 4.4: attacks that see through HMC, and what survives of it.

l-infinity 0.1: the victim behind HMC under attacks that do not see it, and under two that go on
from there: one that takes the encoder's slope for the chain's (straight through), one that
differentiates the end of the chain (truncated). Every attack starts from a random start of its own.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.papers.kuzina2022.common import regression, similarity
from robustvae.attacks import Goal, StraightThrough, Truncated
from robustvae.attacks.attack import ready
from robustvae.defenses import Defense
from robustvae.metrics import mean_stderr
from robustvae.perturb import outward
from robustvae.perturb.ascent import evaluate

BALL = rv.Ball("linf", 0.1)  # the radius of the defense-aware part
BLIND = ("latent shift", "damage")
SEEING = ("straight through", "truncated")


@final
@dataclass(frozen=True)
class Spec:
    """What is measured.

    Attributes:
        model: The victim.
        data: Its data set.
        points: References, balanced over the classes.
        restarts: Attacks on each.
        steps: Of attacks that do not see the defense.
        through: Sign steps of the two that do: straight through, truncated.
        transitions: Of the short chain.
        last: Transitions of it that are differentiated.
        far: References under the paper's own schedule; 0 leaves it out.
        learn: Training images of the classifier.
    """

    model: str = "mnist-conv28"
    data: str = "mnist"
    points: int = 50
    restarts: int = 10
    steps: int = 50
    through: tuple[int, int] = (4, 8)
    transitions: int = 26
    last: int = 5
    far: int = 0
    learn: int = 5000


@final
class _Study:
    """The victim, its references and its defense."""

    def __init__(self, spec: Spec, run: Run) -> None:
        self.spec, self.run, self.vae = spec, run, run.model(spec.model)
        test, train = run.images(spec.data), run.images(spec.data, "train")
        x, y = test.sample(spec.points, stratified=True, generator=run.noise("references"))
        self.x, self.label = x, y
        learn, labels = train.sample(spec.learn, stratified=True, generator=rv.generator(1))
        with torch.no_grad():
            codes = torch.cat([self.vae.encode(part).mean for part in learn.split(500)])
        self.classifier = regression(codes, labels)
        self.plain = rv.Victim(self.vae, classifier=self.classifier)
        self.short = rv.HMC(spec.transitions, n_leapfrog=5, step_size=0.1, adapt="chain")

    def tensors(self, key: str, values: dict[str, list[Any]]) -> dict[str, Tensor]:
        return {name: torch.tensor(value, dtype=self.x.dtype) for name, value in values.items()}

    def look(
        self, victim: rv.Victim, x: Tensor, y: Tensor, label: Tensor, noise: torch.Generator
    ) -> Tensor:
        """What became of attacked images: MS-SSIM, squared distance, label kept, (n, 3).

        MS-SSIM is to a reconstruction of a sampled code of the reference, the distance to the
        reconstruction of its mean.
        """
        with torch.no_grad(), ready(victim, x, rv.Ball("linf", 1.0)):
            sampled = rv.Victim(self.vae, rv.PosteriorSample())
            sharp = self.plain.reconstruct(x, generator=self.run.noise("mean"))
            drawn = sampled.reconstruct(x, generator=self.run.noise("reference"))
            z = victim.latent(y, generator=noise)
            x_hat = self.vae.decode(z).mean
            far = (x_hat - sharp).flatten(1).square().sum(1)
            holds = (self.classifier(z).argmax(1) == label).to(far)
        return torch.stack([similarity(x_hat, drawn).to(far), far, holds], 1)

    def climb(
        self, victim: rv.Victim, start: Tensor, clean: Tensor, steps: int, name: str, shard: int
    ) -> Tensor:
        """Raise the distance from `clean` by sign steps, fresh randomness in each."""
        y = start
        for count in range(steps):
            fresh = self.run.noise(f"{name} {count}", shard)

            def score(at: Tensor, rows: Tensor, fresh: torch.Generator = fresh) -> Tensor:
                x_hat = victim.reconstruct(at, generator=fresh)
                return (x_hat - clean).flatten(1).square().sum(1)

            _, slope = evaluate(score, y, torch.arange(len(y)))
            assert slope is not None
            rate = 0.5 * float(BALL.radius) * (1 - count / steps)
            y = BALL.project(self.x[: len(y)], y + rate * slope.sign())
        return y

    def behind(self, shard: int) -> dict[str, Tensor]:
        """Section 4.4: one attack of each kind on each reference, from the shard's own starts."""
        x, label, chain, run = self.x, self.label, self.short, self.run
        hidden = rv.Victim(self.vae, chain, self.classifier)
        search = rv.ProjectedAscent(steps=self.spec.steps, restarts=1)
        images = {"clean": x, "noise": outward(x, BALL, generator=run.noise("noise", shard))}
        goals: tuple[Goal, ...] = (rv.LatentShift(), rv.MaximumDamage())
        for name, goal in zip(BLIND, goals, strict=True):
            images[name] = rv.Attack(goal, search, BALL)(
                self.plain, x, generator=run.noise(name, shard)
            ).x_adv
        ways: tuple[Defense, ...] = (
            StraightThrough(chain),
            Truncated(chain, last=self.spec.last),
        )
        values: dict[str, Tensor] = {}
        with ready(hidden, x, BALL):
            clean = self.plain.reconstruct(x, generator=run.noise("mean"))
            for name, way, steps in zip(SEEING, ways, self.spec.through, strict=True):
                victim, start = rv.Victim(self.vae, way), images["damage"]
                images[name] = self.climb(victim, start, clean, steps, name, shard)
        for name, y in images.items():
            assert BALL.contains(x, y).all()
            values[f"{name}, undefended"] = self.look(self.plain, x, y, label, run.noise("none"))
            noise = run.noise(f"look {name}", shard)
            values[f"{name}, HMC"] = self.look(hidden, x, y, label, noise)
            if name in (*BLIND, *SEEING):  # which attack is the worst is chosen by other noise
                noise = run.noise(f"choose {name}", shard)
                values[f"{name}, chosen by"] = self.look(hidden, x, y, label, noise)
                values[f"{name}, image"] = y
        return values

    def far(self, shards: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The paper's own chain on a few references: the worst attacks of the short one."""
        count = self.spec.far
        x, label = self.x[:count], self.label[:count]
        long = rv.HMC(steps=500, n_leapfrog=20, step_size=0.1, adapt="paper")
        hidden, rows = rv.Victim(self.vae, long, self.classifier), torch.arange(count)
        images = {"clean": x}
        for name in ("damage", *SEEING):
            chosen = torch.stack([shard[f"{name}, chosen by"][:count, 1] for shard in shards], 1)
            each = torch.stack([shard[f"{name}, image"][:count] for shard in shards], 1)
            images[name] = each[rows, chosen.argmax(1)]
        noise = self.run.noise("long")
        return {n: self.look(hidden, x, y, label, noise) for n, y in images.items()}


@item(
    "kuzina2022/aware",
    "[Kuzina22] section 4.4",
    sizes={
        "smoke": Spec("digits-vae", "digits", 10, 2, 2, (1, 1), 2, 1, 0, 300),
        "laptop": Spec(),
        "full": Spec(far=20),
    },
)
def aware(spec: Spec, run: Run) -> Result:
    """Attacks on the undefended model and behind HMC, seeing and not, and what survives."""
    study, rows = _Study(spec, run), list[Row]()

    def add(what: str, setting: str, values: Tensor, section: str, **more: Any) -> None:
        mean, stderr = mean_stderr(values.mean(1) if values.ndim == 2 else values)
        rows.append(Row(what, setting, mean, stderr, len(values), section=section, **more))

    shards = []
    for shard in run.each(range(spec.restarts)):
        parts = run.part(f"behind, {shard}", functools.partial(study.behind, shard), study.vae)
        shards.append(study.tensors("behind", parts))
        run.progress(f"behind HMC: attack {shard + 1} of {spec.restarts} on each reference")
    section = f"Behind HMC, l-infinity {float(BALL.radius):g}"
    joint = {key: torch.stack([shard[key] for shard in shards], 1) for key in shards[0]}
    for kind in ("clean", "noise", *BLIND, *SEEING):
        add(kind, "squared distance, undefended", joint[f"{kind}, undefended"][..., 1], section)
        seen = joint[f"{kind}, HMC"]
        for setting, column in (("squared distance", 1), ("MS-SSIM", 0), ("label", 2)):
            add(kind, f"{setting}, HMC", seen[..., column], section)
    bare = torch.cat([joint[f"{kind}, undefended"][..., 1] for kind in BLIND], 1).amax(1)
    ends = []
    for name, kinds in (("unseeing", BLIND), ("of all", (*BLIND, *SEEING))):
        chosen = torch.cat([joint[f"{kind}, chosen by"][..., 1] for kind in kinds], 1)
        seen = torch.cat([joint[f"{kind}, HMC"] for kind in kinds], 1)
        ends.append(_worst(seen, chosen))
        for setting, column in (("squared distance", 1), ("MS-SSIM", 0), ("label", 2)):
            add(f"worst {name}", f"{setting}, HMC", ends[-1][:, column], section)
    for setting, value, stderr in _survival(bare, ends[0][:, 1], ends[1][:, 1]):
        rows.append(Row("worst attack", setting, value, stderr, len(bare), section="Survives"))
    if spec.far:
        part = run.part("the paper's schedule", lambda: study.far(shards), study.vae)
        for name, seen in study.tensors("far", part).items():
            for setting, column in (("squared distance", 1), ("MS-SSIM", 0), ("label", 2)):
                add(name, f"{setting}, HMC", seen[:, column], "The paper's own schedule")
    return run.result(
        "Attacks on a VAE and on its HMC defense",
        "MS-SSIM, squared pixel units, and shares of the images",
        rows,
        (
            f"{spec.points} test references, balanced over the classes, {spec.restarts} attacks of "
            f"{spec.steps} steps on each from as many random starts; means over all attacks, "
            "± one standard error over the references.",
            f"HMC: {study.short.gradients} gradients, a step size per chain. The seeing attacks go "
            f"on from where the damage attack ended, by {spec.through[0]} sign steps (straight "
            f"through) and {spec.through[1]} (the last {spec.last} transitions differentiated).",
            "Survives: the share of the damage that HMC takes off the worst attack, unseen and "
            "seen, and the second over the first (2,000 bootstrap samples of the references). The "
            "attacks are lower bounds on what an attacker can do, so these are upper bounds.",
        ),
    )


def _worst(seen: Tensor, chosen: Tensor) -> Tensor:
    """The attack of each reference that did most harm by other noise than it is shown under."""
    return seen[torch.arange(len(seen)), chosen.argmax(1)]


def _survival(bare: Tensor, unseen: Tensor, seen: Tensor) -> list[tuple[str, float, float]]:
    """Share of the damage taken off, unseen and seen, and the second over the first."""

    def ratio(rows: Tensor) -> Tensor:
        damage = bare[rows].mean(-1)
        return (damage - seen[rows].mean(-1)) / (damage - unseen[rows].mean(-1))

    rows = torch.randint(len(bare), (2000, len(bare)), generator=rv.generator(0))
    damage = bare.mean()
    return [
        ("taken off, unseen", float((damage - unseen.mean()) / damage), 0.0),
        ("taken off, seen", float((damage - seen.mean()) / damage), 0.0),
        ("survives", float(ratio(torch.arange(len(bare)))), float(ratio(rows).std())),
    ]

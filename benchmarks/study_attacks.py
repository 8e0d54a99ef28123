"""[Kuzina22] sections 4.2 and 4.4 on a trained model, with attacks that see through the defense.

    python benchmarks/study_attacks.py MODEL undefended
    python benchmarks/study_attacks.py MODEL short --shard 0     # ... 9
    python benchmarks/study_attacks.py MODEL long --shard 0      # ... 3
    python benchmarks/study_attacks.py MODEL report

50 class-balanced references, ten attacks on each, every one from its own random start. A part that
has been computed is not computed again. 4.2: symmetric KL for MS-SSIM, a classifier's loss for
adversarial accuracy, l-infinity 0.1 and 0.2. 4.4, l-infinity 0.1: the same victim behind HMC, under
attacks that do not see it, and under two that go on from there: one that takes the encoder's slope
for the chain's (straight through), one that differentiates the end of the chain (truncated).
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import robustvae as rv
from robustvae.attacks import ClassifierFlip, StraightThrough, Truncated
from robustvae.attacks.attack import ready
from robustvae.metrics import mean_stderr, ms_ssim
from robustvae.perturb import outward
from robustvae.perturb.ascent import evaluate
from robustvae.seeding import shard_generator

PAPER = {  # MNIST VAE, standard error in brackets where it is printed
    "ms-ssim 0.1": "0.70 (0.02)",
    "ms-ssim 0.2": "0.36 (0.03)",
    "label accuracy 0": "0.90",
    "label accuracy 0.1": "0.08",
    "label accuracy 0.2": "0.05",
    "hmc ms-ssim 0.1": "0.88 (0.01)",
}
RADII = (0.1, 0.2)
SEEN = 0.1  # the radius of the defense-aware part
SHARDS = {"short": 10, "long": 4}
CHAINS = {
    "short": rv.HMC(steps=26, n_leapfrog=5, step_size=0.1, adapt="chain"),
    "long": rv.HMC(steps=500, n_leapfrog=20, step_size=0.1, adapt="paper"),
}
LAST = {"short": 5, "long": 2}  # transitions that are differentiated
STEPS = {"short": {"straight through": 4, "truncated": 8}, "long": {"truncated": 4}}
DOCS = Path(__file__).parents[1] / "docs" / "results"


def probe(vae: rv.VAE, images: rv.data.Images, count: int = 5000) -> torch.nn.Module:
    """A linear classifier on posterior means of the training split."""
    x, y = images.sample(count, stratified=True, generator=rv.generator(1))
    with torch.no_grad():
        z = torch.cat([vae.encode(part).mean for part in x.split(500)])
    fitted = LogisticRegression(max_iter=300, C=0.1).fit(z.numpy(), y.numpy())
    layer = torch.nn.Linear(z.shape[1], len(fitted.classes_))
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(fitted.coef_))
        layer.bias.copy_(torch.as_tensor(fitted.intercept_))
    return layer


class Study:
    """The victim, its references, and where the parts are kept."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.folder = given, given.work
        self.vae = rv.load(given.model)
        test = rv.data.load(given.data, split="test")
        self.x, self.label = test.sample(
            given.points, stratified=True, generator=shard_generator(given.seed, 0, "references")
        )
        self.classifier = probe(self.vae, rv.data.load(given.data, split="train"))
        self.plain = rv.Victim(self.vae, classifier=self.classifier)

    def noise(self, what: str, shard: int = 0) -> torch.Generator:
        return shard_generator(self.given.seed, shard, what)

    def look(self, victim: rv.Victim, x: Tensor, y: Tensor, label: Tensor, noise: str) -> Tensor:
        """What became of attacked images: MS-SSIM to the reference's reconstruction, squared
        distance to its mean reconstruction, whether the class is the label, (n, 3)."""
        shard = self.given.shard
        with torch.no_grad(), ready(victim, x, rv.Ball("linf", 1.0)):
            sampled = rv.Victim(self.vae, rv.PosteriorSample())
            sharp = self.plain.reconstruct(x, generator=self.noise("mean"))
            drawn = sampled.reconstruct(x, generator=self.noise("reference", shard))
            z = victim.latent(y, generator=self.noise(noise, shard))
            x_hat = self.vae.decode(z).mean
            similar = ms_ssim(drawn, x_hat, variant="kuzina2022")
            far = (x_hat - sharp).flatten(1).square().sum(1)
            holds = (self.classifier(z).argmax(1) == label).to(far)
        return torch.stack([similar, far, holds], 1)

    def undefended(self) -> dict[str, Tensor]:
        """Section 4.2, per reference and attack, (points, restarts)."""
        count, found = self.given.restarts, {}
        x, label = (part.repeat_interleave(count, 0) for part in (self.x, self.label))
        sampled = rv.Victim(self.vae, rv.PosteriorSample(), self.classifier)
        search = rv.ProjectedAscent(steps=50, restarts=1)
        with torch.no_grad():
            before = self.plain.classify(x, generator=self.noise("none")).argmax(1)
        looks = {"clean": x}
        for radius in RADII:
            ball = rv.Ball("linf", radius)
            looks[f"noise {radius}"] = outward(x, ball, generator=self.noise(f"noise {radius}"))
            for name, goal in (("shift", rv.LatentShift()), ("flip", ClassifierFlip(label))):
                attacked = rv.Attack(goal, search, ball)(
                    self.plain, x, generator=self.noise(f"{name} {radius}")
                )
                assert attacked.status.count("ok") == len(x)
                looks[f"{name} {radius}"] = attacked.x_adv
                found[f"{name} {radius}, score"] = attacked.score
        for name, y in looks.items():
            seen = self.look(sampled, x, y, label, f"look {name}")
            with torch.no_grad():
                now = self.plain.classify(y, generator=self.noise("none")).argmax(1)
            found[f"{name}, ms-ssim"], found[f"{name}, far"] = seen[:, 0], seen[:, 1]
            found[f"{name}, label"] = seen[:, 2]
            found[f"{name}, prediction"] = (now == before).to(seen)
        return {name: value.view(-1, count) for name, value in found.items()}

    def climb(
        self, victim: rv.Victim, x: Tensor, start: Tensor, clean: Tensor, steps: int, name: str
    ) -> tuple[Tensor, Tensor]:
        """Raise the distance from `clean` by sign steps, fresh randomness of the defense in each;
        where it ends, and the least norm of a gradient met."""
        ball, y, least = rv.Ball("linf", SEEN), start, torch.full((len(x),), torch.inf)
        for count in range(steps):
            fresh = self.noise(f"{name} {count}", self.given.shard)

            def score(at: Tensor, rows: Tensor, fresh: torch.Generator = fresh) -> Tensor:
                x_hat = victim.reconstruct(at, generator=fresh)
                return (x_hat - clean).flatten(1).square().sum(1)

            _, slope = evaluate(score, y, torch.arange(len(x)))
            assert slope is not None
            least = torch.minimum(least, slope.flatten(1).norm(dim=1))
            rate = 0.5 * SEEN * (1 - count / steps)
            y = ball.project(x, y + rate * slope.sign())
        return y, least

    def short(self) -> dict[str, Tensor]:
        """Section 4.4: one attack on each reference, the shard's own random starts, (points, 1)."""
        x, label, chain = self.x, self.label, CHAINS["short"]
        hidden = rv.Victim(self.vae, chain, self.classifier)
        ball, shard = rv.Ball("linf", SEEN), self.given.shard
        search = rv.ProjectedAscent(steps=50, restarts=1)
        found: dict[str, Tensor] = {}
        images = {"clean": x, "noise": outward(x, ball, generator=self.noise("noise", shard))}
        for name, goal in (("latent shift", rv.LatentShift()), ("damage", rv.MaximumDamage())):
            images[name] = rv.Attack(goal, search, ball)(
                self.plain, x, generator=self.noise(name, shard)
            ).x_adv
        ways = {
            "straight through": StraightThrough(chain),
            "truncated": Truncated(chain, last=LAST["short"]),
        }
        with ready(hidden, x, ball):
            clean = self.plain.reconstruct(x, generator=self.noise("mean"))
            for name, way in ways.items():
                images[name], found[f"{name}, gradient"] = self.climb(
                    rv.Victim(self.vae, way), x, images["damage"], clean,
                    STEPS["short"][name], name,
                )  # fmt: skip
        for name, y in images.items():
            assert ball.contains(x, y).all()
            found[f"{name}, image"] = y
            found[f"{name}, undefended"] = self.look(self.plain, x, y, label, "none")
            found[f"{name}, hmc"] = self.look(hidden, x, y, label, f"look {name}")
            if name not in ("clean", "noise"):
                found[f"{name}, chosen by"] = self.look(hidden, x, y, label, f"choose {name}")
        return {name: value.unsqueeze(1) for name, value in found.items()}

    def long(self) -> dict[str, Tensor]:
        """The paper's own chain on few references, one attack on each."""
        few = torch.arange(0, len(self.x), max(1, len(self.x) // 20))[:20]
        places = few.chunk(SHARDS["long"])[self.given.shard]
        x, label, chain = self.x[places], self.label[places], CHAINS["long"]
        earlier = self.joined("short")
        hidden, ball = rv.Victim(self.vae, chain, self.classifier), rv.Ball("linf", SEEN)
        images, rows = {"clean": x}, torch.arange(len(places))
        for name in ("damage", "straight through", "truncated"):
            worst = earlier[f"{name}, chosen by"][places, :, 1].argmax(1)
            images[f"{name}, of the short chain"] = earlier[f"{name}, image"][places][rows, worst]
        start = images["truncated, of the short chain"]
        found = {}
        with ready(hidden, x, ball):
            clean = self.plain.reconstruct(x, generator=self.noise("mean"))
            way = rv.Victim(self.vae, Truncated(chain, last=LAST["long"]))
            name = "truncated, of the long chain"
            images[name], found[f"{name}, gradient"] = self.climb(
                way, x, start, clean, STEPS["long"]["truncated"], "long"
            )
        many = len(images)
        everything = torch.cat(list(images.values()))
        assert ball.contains(x.repeat(many, 1, 1, 1), everything).all()
        seen = self.look(hidden, x.repeat(many, 1, 1, 1), everything, label.repeat(many), "long")
        for name, part in zip(images, seen.chunk(many), strict=True):
            found[f"{name}, hmc"] = part
        return found

    def joined(self, part: str) -> dict[str, Tensor]:
        """The shards of a part that there are: of the short one more attacks on each reference,
        of the long one more references."""
        paths = [self.path(part, shard) for shard in range(SHARDS.get(part, 1))]
        shards = [np.load(path) for path in paths if path.exists()]
        joint = {}
        for name in shards[0].files if shards else ():
            parts = [torch.as_tensor(shard[name]) for shard in shards]
            joint[name] = torch.cat(parts, 1 if part == "short" and parts[0].ndim > 1 else 0)
        return joint

    def path(self, part: str, shard: int) -> Path:
        return self.folder / f"{part}-{shard}.npz"

    def run(self, part: str, make: Callable[[], dict[str, Tensor]]) -> None:
        path = self.path(part, self.given.shard)
        if path.exists():
            return
        began = time.perf_counter()
        arrays = {name: value.numpy() for name, value in make().items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays["seconds"] = np.array([time.perf_counter() - began])
        np.savez_compressed(path, **arrays)
        print(f"{path}: {arrays['seconds'][0]:.0f} s")


def by_reference(values: Tensor) -> tuple[float, float]:
    """Mean and standard error over references of (points,) or (points, restarts)."""
    return mean_stderr((values.mean(1) if values.ndim == 2 else values).tolist())


def shown(value: tuple[float, float], digits: int = 2) -> str:
    return f"{value[0]:.{digits}f} ± {value[1]:.{digits}f}"


def worst_of(seen: Tensor, chosen: Tensor) -> Tensor:
    """The attack of each reference that did most harm by other noise than it is shown under."""
    return seen[torch.arange(len(seen)), chosen.argmax(1)]


def report(study: Study) -> None:
    """The tables as Markdown, and every number of them as JSON."""
    given, flat, lines = study.given, study.joined("undefended"), []
    record: dict[str, object] = {"paper": PAPER}
    lines += [
        "# Attacks on a convolutional VAE and on its HMC defense: [Kuzina22] 4.2 and 4.4",
        "",
        "## Undefended (section 4.2)",
        "",
        f"{given.points} test references, balanced over the classes, {given.restarts} attacks of "
        "50 steps on each from as many random starts; mean over all attacks, ± one standard error "
        "over the references. Worst: the attack of each reference with the highest score. MS-SSIM "
        "(the paper's variant) between reconstructions of sampled codes under the symmetric-KL "
        "attack; accuracies of a linear classifier on the codes under an attack on it.",
        "",
        "| | paper | ours | worst attack of each | noise of equal size |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    table: dict[str, object] = {}
    for radius in (0.0, *RADII):
        at = f"{radius:g}"
        shift, flip = (f"{kind} {at}" if radius else "clean" for kind in ("shift", "flip"))
        rows = [
            ("MS-SSIM", shift, "ms-ssim", PAPER.get(f"ms-ssim {at}", "")),
            ("accuracy, against the label, sampled code", flip, "label",
             PAPER[f"label accuracy {at}"]),
            ("accuracy, against the prediction, mean code", flip, "prediction", ""),
        ]  # fmt: skip
        for title, attack, what, paper in rows:
            values = flat[f"{attack}, {what}"]
            cells = [by_reference(values)]
            if radius:
                best = flat[f"{attack}, score"]
                cells += [
                    by_reference(worst_of(values, best)),
                    by_reference(flat[f"noise {at}, {what}"]),
                ]
            table[f"{title}, {at}"] = cells
            texts = [shown(cell) for cell in cells] + ["", ""][: 3 - len(cells)]
            lines.append(f"| {title}, {at} | {paper} | {' | '.join(texts)} |")
    record["undefended"] = table

    seen = study.joined("short")
    chain = CHAINS["short"]
    kinds = ("clean", "noise", "latent shift", "damage", "straight through", "truncated")
    rows_short: dict[str, object] = {}
    lines += [
        "",
        "## Behind HMC, under attacks that see it (section 4.4)",
        "",
        f"l-infinity {SEEN:g}; {given.points} references, "
        f"{seen['truncated, hmc'].shape[1]} attacks of each kind on each. HMC: {chain.steps} "
        f"transitions of {chain.n_leapfrog} leapfrog steps, a step size per chain, "
        f"{chain.gradients} gradients. Squared distance: from the defended reconstruction of the "
        "attacked image to the undefended one of the clean image. The seeing attacks go on from "
        f"where the damage attack ended, by {STEPS['short']['straight through']} sign steps "
        f"(straight through) and {STEPS['short']['truncated']} (the last {LAST['short']} "
        "transitions differentiated, the rest carried over by the encoder's mean), with fresh "
        "randomness of the chain in every step.",
        "",
        "| | squared distance, undefended | behind HMC | MS-SSIM behind HMC | class is the label "
        "behind HMC |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for kind in kinds:
        bare, hmc = seen[f"{kind}, undefended"], seen[f"{kind}, hmc"]
        cells = [by_reference(bare[..., 1]), *(by_reference(hmc[..., k]) for k in (1, 0, 2))]
        rows_short[kind] = cells
        texts = [shown(cells[0], 1), shown(cells[1], 1), shown(cells[2]), shown(cells[3])]
        lines.append(f"| {kind} | {' | '.join(texts)} |")

    def worst(kinds: tuple[str, ...], what: str) -> Tensor:
        """Of all attacks of some kinds on each reference the worst, (points, 3)."""
        chosen = torch.cat([seen[f"{kind}, chosen by"][..., 1] for kind in kinds], 1)
        return worst_of(torch.cat([seen[f"{kind}, {what}"] for kind in kinds], 1), chosen)

    blind, all_kinds = kinds[2:4], kinds[2:]
    bare_all = torch.cat([seen[f"{kind}, undefended"] for kind in blind], 1)
    bare = bare_all[torch.arange(len(bare_all)), bare_all[..., 1].argmax(1)]
    unseen, aware = worst(blind, "hmc"), worst(all_kinds, "hmc")
    for title, pair in (("worst, unseeing", unseen), ("worst of all", aware)):
        cells = [by_reference(bare[:, 1]), *(by_reference(pair[:, k]) for k in (1, 0, 2))]
        rows_short[title] = cells
        texts = ["" if title == "worst of all" else shown(cells[0], 1),
                 shown(cells[1], 1), shown(cells[2]), shown(cells[3])]  # fmt: skip
        lines.append(f"| {title}, of each reference | {' | '.join(texts)} |")
    survives = {}
    for name, against in (
        ("worst attack of each reference", (bare[:, 1], unseen[:, 1], aware[:, 1])),
        (
            "mean attack",
            tuple(
                part.mean(1)
                for part in (
                    seen["damage, undefended"][..., 1],
                    seen["damage, hmc"][..., 1],
                    seen["truncated, hmc"][..., 1],
                )
            ),
        ),
    ):
        survives[name] = share(*against)
    record["short"] = {
        "rows (undefended distance, distance, ms-ssim, label)": rows_short,
        "surviving share of the protection": survives,
        "least gradient": {
            kind: float(seen[f"{kind}, gradient"].min())
            for kind in ("straight through", "truncated")
        },
    }
    kept, mean = survives["worst attack of each reference"], survives["mean attack"]
    lines += [
        "",
        f"**What survives.** Against attacks that do not see it HMC takes {kept[0]:.0%} off the "
        f"squared distance of the worst attack; against attacks that see it, {kept[1]:.0%}: "
        f"**{kept[2]:.0%} ± {kept[3]:.0%}** of the protection survives (bootstrap over "
        "references). "
        f"For the mean attack (damage against truncated): {mean[0]:.0%}, {mean[1]:.0%}, "
        f"**{mean[2]:.0%} ± {mean[3]:.0%}**. The attacks are lower bounds on what an attacker can "
        "do, so these shares are upper bounds.",
    ]

    far, own = study.joined("long"), CHAINS["long"]
    if far:
        names = [name.removesuffix(", hmc") for name in far if name.endswith(", hmc")]
        count = len(far[f"{names[0]}, hmc"])
        lines += [
            "",
            "## The paper's own schedule",
            "",
            f"{count} references, one attack on each. T = {own.steps} transitions of "
            f"{own.n_leapfrog} leapfrog steps, one step size for the batch ({own.gradients:,} "
            "gradients; no burn-in on top). The attacks of the short chain are transferred, the "
            "worst of them; the last row goes on from the truncated one by "
            f"{STEPS['long']['truncated']} sign steps, the last {LAST['long']} transitions "
            "differentiated.",
            "",
            "| | squared distance behind HMC | MS-SSIM | class is the label |",
            "| --- | ---: | ---: | ---: |",
        ]
        rows_long = {}
        for name in names:
            part = far[f"{name}, hmc"]
            cells = [by_reference(part[:, k]) for k in (1, 0, 2)]
            rows_long[name] = cells
            texts = [shown(cells[0], 1), shown(cells[1]), shown(cells[2])]
            lines.append(f"| {name} | {' | '.join(texts)} |")
        record["long"] = rows_long
    weights = json.loads((Path(given.model) / "config.json").read_text())
    facts = {
        "model": f"{given.model}, {weights['card'].get('epochs')} epochs",
        "weights sha256": weights["sha256"],
        "data": f"{given.data}, test",
        "seed": given.seed,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "seconds": {
            part: round(float(study.joined(part)["seconds"].sum()))
            for part in ("undefended", "short", "long")
            if study.joined(part)
        },
        "command": f"python benchmarks/study_attacks.py {given.model} undefended | short --shard "
        "0..9 | long --shard 0..3 | report",
        "machine": "x86_64, 2 cores shared with other work, one thread",
    }
    lines += ["", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    record["facts"] = facts
    (DOCS / "attacks.md").write_text("\n".join(lines))
    (DOCS / "attacks.json").write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(lines))


def share(bare: Tensor, unseen: Tensor, seen: Tensor) -> tuple[float, float, float, float]:
    """Share of the damage that the defense takes off, unseen and seen; the second over the first,
    and its standard error by 2,000 bootstrap samples of the references."""

    def ratio(rows: Tensor) -> Tensor:
        whole = bare[rows].mean(-1)
        return (whole - seen[rows].mean(-1)) / (whole - unseen[rows].mean(-1))

    rows = torch.randint(len(bare), (2000, len(bare)), generator=rv.generator(0))
    whole = bare.mean()
    return (
        float((whole - unseen.mean()) / whole),
        float((whole - seen.mean()) / whole),
        float(ratio(torch.arange(len(bare)))),
        float(ratio(rows).std()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("part", choices=("undefended", "short", "long", "report"))
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/study-attacks"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(given)
    if given.part == "report":
        report(study)
    else:
        study.run(given.part, getattr(study, given.part))


if __name__ == "__main__":
    main()

"""[Kuzina22] sections 4.2 and 4.4 on a trained model, with attacks that see: a small study.

    python benchmarks/study_attacks.py MODEL [--data mnist] [--points 50] [--seeing 10]

4.2: LatentShift (symmetric KL) for MS-SSIM, ClassifierFlip for adversarial accuracy, l-infinity,
50 steps x 10 restarts, class-balanced references. 4.4: the same victim behind a short HMC, under
an attack that does not see it, under one with true gradients through the chain, and under random
noise; a smaller number of references and steps, written into the result.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression

import robustvae as rv
from robustvae.attacks import ClassifierFlip, adversarial_accuracy
from robustvae.metrics import mean_stderr, ms_ssim
from robustvae.perturb import outward

PAPER = {
    "ms_ssim": {"0.1": 0.70, "0.2": 0.36},
    "ms_ssim_hmc": {"0.1": 0.88, "0.2": 0.76},
    "adversarial_accuracy_label": {"0": 0.90, "0.1": 0.08, "0.2": 0.05},
}
RESULTS = Path(__file__).parent / "results" / "study-attacks.json"


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


def similarity(victim: rv.Victim, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Mean and standard error of the papers' MS-SSIM between reconstructions of samples."""
    with torch.no_grad():
        a = victim.reconstruct(x, generator=rv.generator(2))
        b = victim.reconstruct(y, generator=rv.generator(3))
    return mean_stderr(ms_ssim(a, b, variant="kuzina2022").tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--seeing", type=int, default=10, help="references of the 4.4 part")
    parser.add_argument("--chain", type=int, default=10, help="HMC transitions of 5 gradients")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    vae = rv.load(given.model)
    images = rv.data.load(given.data, split="test")
    x, label = images.sample(given.points, stratified=True, generator=rv.generator(0))
    classifier = probe(vae, rv.data.load(given.data, split="train"))
    victim = rv.Victim(vae, rv.PosteriorSample(), classifier)
    plain = rv.Victim(vae, classifier=classifier)
    search = rv.ProjectedAscent(steps=50, restarts=given.restarts)
    found: dict[str, object] = {"ms_ssim_clean": similarity(victim, x, x)}
    accuracy = {}
    for against in ("prediction", "label"):
        held = adversarial_accuracy(plain, x, x, label, against=against, generator=rv.generator(4))
        accuracy[f"{against} at 0"] = mean_stderr(held.tolist())
    for radius in (0.1, 0.2):
        ball = rv.Ball("linf", radius)
        shifted = rv.Attack(rv.LatentShift(), search, ball)(plain, x, generator=rv.generator(5))
        found[f"ms_ssim at {radius}"] = similarity(victim, x, shifted.x_adv)
        noise = outward(x, ball, generator=rv.generator(6))
        found[f"ms_ssim under noise at {radius}"] = similarity(victim, x, noise)
        flip = ClassifierFlip(label)
        flipped = rv.Attack(flip, search, ball)(plain, x, generator=rv.generator(7))
        for against in ("prediction", "label"):
            held = adversarial_accuracy(
                plain, x, flipped.x_adv, label, against=against, generator=rv.generator(4)
            )
            accuracy[f"{against} at {radius}"] = mean_stderr(held.tolist())
    few = x[:: max(1, given.points // given.seeing)][: given.seeing]
    chain = rv.HMC(steps=given.chain, n_leapfrog=5, adapt=None, step_size=0.05)
    hidden = rv.Victim(vae, chain)
    ball, goal = rv.Ball("linf", 0.1), rv.MaximumDamage(draws=2)
    short = rv.ProjectedAscent(steps=20, restarts=1, step=0.5)
    attacks = {
        "noise": outward(few, ball, generator=rv.generator(8)),
        "unseeing, latent shift": rv.Attack(rv.LatentShift(), search, ball)(
            plain, few, generator=rv.generator(9)
        ).x_adv,
        "unseeing, damage": rv.Attack(rv.MaximumDamage(), search, ball)(
            plain, few, generator=rv.generator(10)
        ).x_adv,
    }
    seeing = rv.Attack(goal, short, ball)(hidden, few, generator=rv.generator(11))
    attacks["seeing, damage through the chain"] = seeing.x_adv
    clean = plain.reconstruct(few, generator=rv.generator(0))
    through = {"no attack": few, **attacks}
    table = {}
    for name, y in through.items():
        row = {}
        for kind, at in (("undefended", plain), ("hmc", hidden)):
            with torch.no_grad():
                gap = at.reconstruct(y, generator=rv.generator(12)) - clean
            row[f"{kind} squared distance"] = mean_stderr(gap.flatten(1).square().sum(1).tolist())
        row["hmc ms_ssim"] = similarity(hidden, few, y)
        table[name] = row
    record = {
        "model": given.model,
        "points": given.points,
        "restarts": given.restarts,
        "4.2": {**found, "adversarial_accuracy": accuracy, "paper": PAPER},
        "4.4": {
            "chain": f"{given.chain} transitions of 5 leapfrog steps",
            "references": len(few),
            "seeing attack": "20 steps, 1 restart, expectation over 2 draws, linf 0.1",
            "seeing gradient norm (least)": float(seeing.gradient_norm.min()),
            "status": list(seeing.status),
            "table (mean, standard error)": table,
        },
        "seconds": time.perf_counter() - began,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()

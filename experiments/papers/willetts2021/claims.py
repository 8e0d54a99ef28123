"""What [Willetts21] says of Fig. 3, 5, 6, 7 and Table 1, held against measured numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from experiments.harness import Row
from robustvae.metrics import mean_stderr

SECTION = "The paper's sentences"


@final
@dataclass(frozen=True)
class Claim:
    """A sentence, and numbers of one kind that should be positive (sign 1), negative, or not so.

    Attributes:
        sentence: Of the paper, in our words.
        values: One an image, a pair or a training run; of factors the logarithm to base 10.
        sign: 1 or -1; 0 where the paper says that there is no rise.
        paper: What it prints.
        is_factor: Shown as 10 to the mean.
    """

    sentence: str
    values: Sequence[float]
    sign: int
    paper: str = ""
    is_factor: bool = False

    def rows(self) -> Iterator[Row]:
        """Verdict, number and the paper's words."""
        mean, error = mean_stderr(self.values)
        error = error if len(self.values) > 1 else math.inf
        if self.sign:
            side = self.sign * mean
            verdict = "holds" if side > 2 * error else "not clear"
            verdict = "**the opposite**" if side < -2 * error else verdict
        else:
            verdict = "holds" if mean <= 2 * error else "**it rises**"
        text = f"{mean:+.3g} ± {error:.2g}"
        if self.is_factor:
            low, high = 10 ** (mean - error), 10 ** (mean + error)
            text = f"factor {10**mean:.3g} ({low:.3g} to {high:.3g})"
        score = float(verdict == "holds")
        for setting, shown in (("here", verdict), ("numbers", text), ("paper", self.paper or "-")):
            n = len(self.values)
            yield Row(self.sentence, setting, score, n=n, section=SECTION, text=shown)


def claims_of(
    found: Mapping[tuple[str, int, float], Mapping[str, Sequence[float]]],
    ends: Mapping[tuple[str, int], Sequence[tuple[float, float]]],
    betas: Sequence[float],
    depths: Sequence[int],
    noise: float,
) -> list[Row]:
    """Rows of every sentence.

    Args:
        found: Measures by family ("tc" has one layer), depth and beta.
        ends: Change of the encoder's and the decoder's norm in per cent, by family and depth.
        betas: Ascending; the first and the last are compared.
        depths: Ascending, from 1.
        noise: The largest standard deviation measured.
    """
    low, high, deepest = betas[0], betas[-1], depths[-1]

    def change(family: str, depth: int, key: str) -> list[float]:
        pair = [found[family, depth, beta][key] for beta in (low, high)]
        return [after - before for before, after in zip(*pair, strict=True)]

    def factor(at: tuple[str, int, float], base: tuple[str, int, float], key: str) -> list[float]:
        pair = found[base][key], found[at][key]
        return [math.log10(after / before) for before, after in zip(*pair, strict=True)]

    def gap(family: str) -> list[float]:
        deep = [change(family, depth, "ELBO") for depth in depths[1:]]
        means = [sum(column) / len(column) for column in zip(*deep, strict=True)]
        return [b - a for a, b in zip(change("tc", 1, "ELBO"), means, strict=True)]

    first, one, many = ("tc", 1, low), "latent, objective", "output, objective"
    free = "latent, free"
    tc, dlgm = ("tc", 1, high), ("dlgm", deepest, high)
    seatbelt, flat = ("seatbelt", deepest, high), ("seatbelt", deepest, low)
    name = f"noise {noise:g}"
    claims = [
        Claim(
            "Fig. 3: the ELBO of beta-TCVAEs falls with beta more than Seatbelts'",
            gap("seatbelt"),
            1,
        ),
        Claim("Fig. 3: and more than beta-TCDLGMs'", gap("dlgm"), 1),
        Claim(
            "Fig. 5: latent objective of beta-TCVAEs, highest over lowest beta",
            factor(tc, first, one),
            1,
            "1,000 (chairs), over 10 (faces)",
            True,
        ),
        Claim(
            "Fig. 5: output objective of beta-TCVAEs, the same",
            factor(tc, first, many),
            1,
            "1.2",
            True,
        ),
        Claim(
            "Fig. 5: latent objective of beta-TCVAEs at penalty 0, the same",
            factor(tc, first, free),
            1,
            "1,000 (chairs), over 10 (faces)",
            is_factor=True,
        ),
        Claim(
            "Fig. 5: output objective of beta-TCVAEs at penalty 0, the same",
            factor(tc, first, "output, free"),
            1,
            "1.2",
            is_factor=True,
        ),
        Claim(
            "Fig. 6: latent objective of beta-TCDLGMs at penalty 0 does not rise",
            factor(dlgm, first, free),
            0,
            "no rise",
            is_factor=True,
        ),
        Claim(
            "Fig. 6: latent objective of Seatbelts at penalty 0, deepest over a VAE",
            factor(seatbelt, first, free),
            1,
            "10,000,000",
            is_factor=True,
        ),
        Claim(
            "Fig. 6: latent objective of beta-TCDLGMs does not rise with L and beta",
            factor(dlgm, first, one),
            0,
            "no rise",
            True,
        ),
        Claim(
            "Fig. 6: latent objective of Seatbelts, deepest at the highest beta over a VAE",
            factor(seatbelt, first, one),
            1,
            "10,000,000",
            True,
        ),
        Claim(
            "Fig. 6: output objective of Seatbelts, the same",
            factor(seatbelt, first, many),
            1,
            "rises by less",
            True,
        ),
        Claim(
            "Fig. 6: depth and beta together beat beta alone, latent (Seatbelt over beta-TCVAE)",
            factor(seatbelt, tc, one),
            1,
            "rises",
            True,
        ),
        Claim(
            "Fig. 6: and depth alone (over the deepest Seatbelt at the lowest beta)",
            factor(seatbelt, flat, one),
            1,
            "rises",
            True,
        ),
        Claim(
            "Fig. 7: beta-TCVAEs shed noise better at the highest beta, nats",
            change("tc", 1, name),
            1,
        ),
        Claim("Fig. 7: so do the deepest Seatbelts", change("seatbelt", deepest, name), 1),
        Claim("Fig. 7: the deepest beta-TCDLGMs shed it worse", change("dlgm", deepest, name), -1),
    ]
    papers = {
        ("tc", 0): (1, "+5 to +74 %"),
        ("tc", 1): (-1, "-7 to -19 %"),
        ("seatbelt", 0): (1, "+1 to +40 %"),
        ("seatbelt", 1): (-1, "-6 to -11 %"),
    }
    for (family, depth), changes in ends.items():
        for i, part in enumerate(("encoder", "decoder")):
            sign, said = papers[family, i]
            label = "beta-TCVAE" if family == "tc" else f"Seatbelt, L = {depth}"
            sentence = f"Table 1: norm of the {part}'s weights, {label}, per cent"
            claims.append(Claim(sentence, [pair[i] for pair in changes], sign, said))
    return [row for claim in claims for row in claim.rows()]

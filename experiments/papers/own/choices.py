"""What `robustvae advise` reads, as a table and a picture: strength against price, by data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from experiments.harness import Result, Row, Run, item
from experiments.harness.figures import new_figures, save
from robustvae.training.choices import RADII, Choice, measured_choices, prices


@final
@dataclass(frozen=True)
class Spec:
    """What is drawn.

    Attributes:
        pictures: Folder of the picture; empty draws none.
    """

    pictures: str = ""


@item("own/choices", "ours", sizes={"smoke": Spec(), "laptop": Spec(pictures="docs/img")})
def choices(spec: Spec, run: Run) -> Result:
    """Error, similarity under attack and front of every measured choice, of `robustvae advise`."""
    every, rows = measured_choices(), list[Row]()
    least = prices(every)
    for choice in every:
        label = _label(choice)
        price = choice.error / least[choice.data]
        rows.append(Row(label, "error, times the least", price, section=choice.data))
        for i, radius in enumerate(RADII):
            value, error = choice.similarity[i], choice.similarity_stderr[i]
            setting = f"MS-SSIM, linf {radius:g}"
            rows.append(Row(label, setting, value, error, choice.images, section=choice.data))
        text = "yes" if choice.front else ""
        rows.append(Row(label, "front", float(choice.front), section=choice.data, text=text))
    if spec.pictures:
        _draw(every, least, Path(spec.pictures) / "choices.png")
    return run.result(
        "Measured choices",
        "MS-SSIM (variant kuzina2022) under the worst attack tried",
        rows,
        ("Front: no other choice has both a lower error and more similarity at every radius.",),
    )


def _label(choice: Choice) -> str:
    name = choice.defense.partition(":")[0]
    return choice.model if name == "posterior-mean" else f"{choice.model}, {name}"


def _draw(every: tuple[Choice, ...], least: dict[str, float], path: Path) -> None:
    with new_figures() as new:
        figure = new(9, 3.8)
        panels = figure.subplots(1, len(least), squeeze=False)[0]
        for axes, data in zip(panels, least, strict=True):
            here = [choice for choice in every if choice.data == data]
            for i, choice in enumerate(here):
                price, value = choice.error / least[data], choice.similarity[1]
                marker, error = "o" if choice.front else "x", choice.similarity_stderr[1]
                axes.errorbar(price, value, error, fmt=marker, color=f"C{i}", label=_label(choice))
            front = sorted((c.error / least[data], c.similarity[1]) for c in here if c.front)
            axes.plot(*zip(*front, strict=True), color="0.7", lw=0.8, zorder=0)
            axes.set(title=data, xlabel="clean error, times the plain model's", ylim=(0, 1))
            axes.legend(fontsize=6, loc="lower right")
        panels[0].set_ylabel("MS-SSIM left at l-infinity 0.2")
        save(figure, path)

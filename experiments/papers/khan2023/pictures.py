"""Figures of khan2023/geometry: scores against beta, errors against steps, galleries, a map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from experiments.harness.figures import new_figures, save
from experiments.papers.khan2023.measures import (
    DISPLAYED,
    MIXUP,
    PLAIN,
    PLANE,
    SHOWN,
    STEPS,
    Measured,
    Scale,
)
from robustvae.data import Images
from robustvae.geometry import decoder_metric, pullback
from robustvae.models import VAE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS, EIGEN_IMAGES, SIDE = 8, 5, 81


def draw(
    found: Sequence[Measured],
    vaes: dict[str, VAE],
    x: Tensor,
    test: Images,
    folder: Path,
    name: str,
) -> None:
    """Write all figures as `folder`/`name`-*.png.

    Args:
        found: Of khan2023/geometry.
        vaes: The models by name.
        x: The images, (B, C, H, W).
        test: Images whose codes are shown on the map, with labels.
        folder: Made where it is missing.
        name: What the files' names begin with.

    Raises:
        MissingExtraError: No matplotlib.
    """
    shown = [model for model in found if model.name in SHOWN]
    images = x[:COLUMNS]
    with new_figures() as new:
        figures = {
            "scores": _scores(new(9, 5.2), found),
            "histograms": _histograms(new(9, 2.8), shown),
            "steps": _steps(new(11, 4.8), shown),
            "displacement": _displacement(new(4.6, 3.2), shown),
            "gallery": _gallery(new(7, 7.8), vaes[PLAIN], images),
            "eigen-images": _eigen_images(new(7, 5.6), vaes, images),
            "map": _map(new(5.6, 4.6), vaes[PLANE], test),
        }
        for kind, figure in figures.items():
            mode = "L" if kind == "gallery" else "RGB"
            save(figure, folder / f"{name}-{kind}.png", mode)


def _scores(figure: Figure, found: Sequence[Measured]) -> Figure:
    """Figs. 5 and 6: means with intervals against beta, mixup beside."""
    betas = [model for model in found if model.name != MIXUP]
    mixup = next(model for model in found if model.name == MIXUP)
    for axes, key in zip(figure.subplots(2, 3).flat, mixup.scores, strict=True):
        at = [model.beta for model in betas]
        spreads = [model.scores[key] for model in betas]
        axes.fill_between(at, [s.low for s in spreads], [s.high for s in spreads], alpha=0.3)
        axes.plot(at, [s.mean for s in spreads], ".-", label="ELBO")
        point = mixup.scores[key]
        axes.errorbar(
            [mixup.beta],
            [point.mean],
            [[point.mean - point.low], [point.high - point.mean]],
            fmt="s",
            color="C3",
            label="mixup",
        )
        axes.set(xscale="log", title=key, xlabel="beta")
        if "radius" in key:
            axes.set_yscale("log")
        if key == "entropy, None":
            axes.set_yscale("symlog", linthresh=10)
    figure.axes[0].legend()
    return figure


def _histograms(figure: Figure, shown: list[Measured]) -> Figure:
    """Fig. 5, first columns, and Fig. 6: the scores of single images."""
    keys = ("spectral radius", 'entropy, "max"', 'entropy, "trace"')
    for axes, key in zip(figure.subplots(1, 3), keys, strict=True):
        numbers = [torch.tensor(model.scores[key].values) for model in shown]
        if key == "spectral radius":
            numbers = [values.log10() for values in numbers]
        low, high = float(torch.cat(numbers).min()), float(torch.cat(numbers).max())
        bins = torch.linspace(low, high + 1e-9, 41).tolist()
        for i, (model, values) in enumerate(zip(shown, numbers, strict=True)):
            axes.hist(values.tolist(), bins, histtype="stepfilled", alpha=0.45, color=f"C{i}")
            axes.hist(values.tolist(), bins, histtype="step", color=f"C{i}", label=model.name)
        axes.set(xlabel=f"log10 of {key}" if key == "spectral radius" else key, yticks=[])
    figure.axes[0].set_ylabel("images")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return figure


def _steps(figure: Figure, shown: list[Measured]) -> Figure:
    """Fig. 5, second row: error against step along five directions, free and clipped."""
    scales: tuple[Scale, Scale] = ("unit", "eigenvalue")
    grid = figure.subplots(2, len(shown), sharey=True, squeeze=False)
    for row, scale in zip(grid, scales, strict=True):
        for axes, model in zip(row, shown, strict=True):
            for i in range(5):
                for box, line in ((False, "-"), (True, ":")):
                    curve = model.curve(scale, box, i + 1)
                    label = None if box else f"$v_{i + 1}$"
                    axes.plot(STEPS[scale], curve.error, line, color=f"C{i}", lw=1.2, label=label)
            axes.axhline(model.error, color="0.6", lw=0.8)
            axes.set_xscale("log")
            if scale == "unit":
                axes.set_title(model.name)
        row[0].set_ylabel("mean squared error a pixel")
        for axes in row:
            axes.set_xlabel(r"$s$, step $s\,v$" if scale == "unit" else r"$s$, step $s\,\lambda v$")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    title = "solid: free, dotted: clipped to [0, 1], gray: no perturbation"
    figure.legend(handles, labels, loc="outside upper center", ncols=5, title=title)
    return figure


def _displacement(figure: Figure, shown: list[Measured]) -> Figure:
    """Fig. 3: how far the code moves along the top direction."""
    axes = figure.subplots()
    for i, model in enumerate(shown):
        curve = model.curve("unit", box=False)
        axes.plot(STEPS["unit"], curve.displacement, color=f"C{i}", label=model.name)
    axes.set(xscale="log", yscale="log", xlabel=r"$s$, step $s\,v_1$", ylabel="latent displacement")
    axes.legend()
    return figure


def _gallery(figure: Figure, vae: VAE, x: Tensor) -> Figure:
    """Fig. 2: images and reconstructions, clean and a step along the top direction."""
    geometry = pullback(vae, x, count=1)
    unit, top = geometry.directions[:, 0], geometry.eigenvalues[:, 0].to(x)[:, None, None, None]
    rows: list[tuple[str, Tensor]] = [("image", x)]
    with torch.no_grad():

        def decoded(y: Tensor) -> Tensor:
            return vae.decode(vae.encode(y).mean).mean

        rows.append(("its reconstruction", decoded(x)))
        for words, move in ((r"$s\,v$", unit), (r"$s\,\lambda v$", top * unit)):
            for step in DISPLAYED:
                up, down = x + step * move, x - step * move
                errors = [(decoded(y) - x).flatten(1).square().sum(1) for y in (up, down)]
                worse = torch.where((errors[0] >= errors[1])[:, None, None, None], up, down)
                rows += [
                    (f"{words}, $s = {step:g}$", worse),
                    ("its reconstruction", decoded(worse)),
                ]
    return _grid(figure, rows)


def _eigen_images(figure: Figure, vaes: dict[str, VAE], x: Tensor) -> Figure:
    """Top directions of one image under each model, on a scale of their own."""
    names = [name for name in SHOWN if name in vaes]
    grid = figure.subplots(len(names), 1 + EIGEN_IMAGES, squeeze=False)
    for row, name in zip(grid, names, strict=True):
        geometry = pullback(vaes[name], x[:1], count=EIGEN_IMAGES)
        row[0].imshow(_picture(x[0]), cmap="gray", vmin=0, vmax=1)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for i, axes in enumerate(row[1:]):
            direction = geometry.directions[0, i]
            most = float(direction.abs().max())
            axes.imshow(_picture(direction), cmap="RdBu_r", vmin=-most, vmax=most)
            axes.set_title(rf"$\lambda = {float(geometry.eigenvalues[0, i]):.3g}$", fontsize=8)
    return _bare(figure)


def _map(figure: Figure, vae: VAE, test: Images) -> Figure:
    """The decoder's volume over the latent plane, with the codes of test images."""
    with torch.no_grad():
        codes = vae.encode(test.x[:1500].to(vae.dtype)).mean
    reach = 1.1 * float(codes.abs().quantile(0.995))
    ticks = torch.linspace(-reach, reach, SIDE, dtype=vae.dtype)
    z = torch.cartesian_prod(ticks, ticks)
    volume = 0.5 * decoder_metric(vae, z).double().logdet()
    axes = figure.subplots()
    extent = (-reach, reach, -reach, reach)
    shades = axes.imshow(
        volume.view(SIDE, SIDE).T.numpy(), origin="lower", extent=extent, cmap="Grays", alpha=0.6
    )
    for label in range(10):
        first, second = codes[test.y[: len(codes)] == label].T.tolist()
        axes.scatter(first, second, color=f"C{label}", s=3, lw=0, label=str(label))
    axes.set(xlabel="$z_1$", ylabel="$z_2$", xlim=extent[:2], ylim=extent[2:])
    figure.colorbar(
        shades,
        label="log volume, half log det of the decoder's metric",
    )
    figure.legend(
        loc="outside lower center", ncols=10, markerscale=3, handletextpad=0, columnspacing=1
    )
    return figure


def _grid(figure: Figure, rows: list[tuple[str, Tensor]]) -> Figure:
    grid = figure.subplots(len(rows), len(rows[0][1]), squeeze=False)
    for line, (words, images) in zip(grid, rows, strict=True):
        for axes, image in zip(line, images, strict=True):
            axes.imshow(_picture(image.clamp(0, 1)), cmap="gray", vmin=0, vmax=1)
        line[0].set_ylabel(words, rotation=0, ha="right", va="center")
    return _bare(figure)


def _bare(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure


def _picture(image: Tensor) -> Any:
    """(C, H, W) as matplotlib wants it."""
    return image.detach().permute(1, 2, 0).squeeze(2).cpu().numpy()

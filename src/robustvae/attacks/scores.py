"""What an attack did, in numbers that papers print: accuracies, likelihoods, curves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.defenses import Victim
from robustvae.errors import RangeError, ShapeError, check_choice, check_positive
from robustvae.models.base import VAE, frozen
from robustvae.seeding import randn


@checked(formula=True)
def adversarial_accuracy(
    victim: Victim,
    x: Tensor,
    x_adv: Tensor,
    label: Tensor | None = None,
    *,
    against: str = "prediction",
    generator: torch.Generator,
) -> Tensor:
    """Whether the victim's class holds under attack; the mean is the adversarial accuracy.

    Args:
        victim: A victim with a classifier.
        x: Clean images, (B, C, H, W).
        x_adv: Attacked images, (B, C, H, W).
        label: True classes, (B,), for `against="label"`.
        against: "prediction": the class predicted at `x` stays, the words and the code
            of [Kuzina22]; "label": the class predicted at `x_adv` is the label, so that it is
            below 1 without an attack.
        generator: Spent by the defense.

    Returns:
        1 where the class holds, else 0, (B,).

    Raises:
        UnknownNameError: Any other `against`.
        ShapeError: No labels, or another number of them, for "label".
        ConfigError: The victim has no classifier.

    References:
        [Kuzina22] section 4.2 and Table 2.
    """
    check_choice("reference", against, ("label", "prediction"))
    with torch.no_grad():
        now = victim.classify(x_adv, generator=generator).argmax(1)
        if against == "prediction":
            target = victim.classify(x, generator=generator).argmax(1)
        elif label is None or tuple(label.shape) != (len(x),):
            raise ShapeError(f"against='label' needs label of shape ({len(x)},)")
        else:
            target = label.to(now)
    return (now == target).to(x.dtype)


@checked(formula=True)
def likelihood_degradation(vae: VAE, x: Tensor, x_adv: Tensor) -> Tensor:
    """|log p(x | mu(x_adv)) - log p(x | mu(x))| / |log p(x | mu(x))|: what the attack costs x.

    Args:
        vae: The model.
        x: Clean images in [0, 1], (B, C, H, W).
        x_adv: Attacked images, (B, C, H, W).

    Returns:
        Relative degradation, (B,).

    References:
        [Camuto21] section 4.1.

    Examples:
        >>> from robustvae.attacks import likelihood_degradation
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x = torch.rand(2, 1, 4, 4)
        >>> likelihood_degradation(vae, x, x)
        tensor([0., 0.])
    """
    with torch.no_grad(), frozen(vae):
        clean = _log_likelihood(vae, x, x)
        attacked = _log_likelihood(vae, x, x_adv)
    return (attacked - clean).abs() / clean.abs().clamp_min(torch.finfo(x.dtype).tiny)


@checked(formula=True)
def noise_robustness(
    vae: VAE, x: Tensor, scales: Sequence[float], *, box: bool = False, generator: torch.Generator
) -> Tensor:
    """log p(x | mu(x + e)), e ~ N(0, s^2 I), for every noise size s: how well noise is shed.

    Args:
        vae: The model.
        x: Images in [0, 1], (B, C, H, W).
        scales: Standard deviations s of the noise, in pixel units, none negative.
        box: Clip x + e to [0, 1].
        generator: Spent on one noise for each image, the same for all sizes.

    Returns:
        Log likelihoods in nats, (B, len(scales)).

    Raises:
        RangeError: No size, or a negative one.

    References:
        [Camuto21] Figure 7; [Willetts21] Figure 7.

    Examples:
        >>> from robustvae.attacks import noise_robustness
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> noise_robustness(vae, torch.rand(3, 1, 4, 4), [0, 0.1], generator=rv.generator(0)).shape
        torch.Size([3, 2])
    """
    if not len(scales) or min(scales) < 0:
        raise RangeError("scales must be at least one number, none of them negative")
    noise = randn(*x.shape, like=x, generator=generator)
    with torch.no_grad(), frozen(vae):
        noisy = [x + scale * noise for scale in scales]
        values = [_log_likelihood(vae, x, y.clamp(0, 1) if box else y) for y in noisy]
    return torch.stack(values, dim=1)


@checked(formula=True)
def success_curve(least: Tensor, radii: Sequence[float]) -> Tensor:
    """Share of inputs whose least successful size is within each radius.

    Args:
        least: Least size at which an attack succeeded, (B,), inf where none did.
        radii: Radii, in the unit of `least`, all positive.

    Returns:
        Shares in [0, 1], (len(radii),), rising with the radius.

    Examples:
        >>> import torch
        >>> from robustvae.attacks import success_curve
        >>> success_curve(torch.tensor([0.5, 1.5, float("inf"), 1.0]), [1.0, 2.0])
        tensor([0.5000, 0.7500])
    """
    edges = torch.tensor(list(radii), dtype=least.dtype, device=least.device)
    check_positive(edges, "radii", each=True)
    return (least.unsqueeze(0) <= edges.unsqueeze(1)).to(least.dtype).mean(1)


@checked(formula=True)
def distances(
    victim: Victim, x: Tensor, x_adv: Tensor, *, generator: torch.Generator
) -> dict[str, Tensor]:
    """Distances between clean and attacked: pixels, latent codes, reconstructions; (B,) each.

    Args:
        victim: What was attacked.
        x: Clean images, (B, C, H, W).
        x_adv: Attacked images, (B, C, H, W).
        generator: Spent by the defense, with the same noise for both.

    Returns:
        2-norms under "input", "latent" and "output", and "input_linf".
    """
    state = generator.get_state()

    def read(images: Tensor) -> tuple[Tensor, Tensor]:
        generator.set_state(state)
        with torch.no_grad(), frozen(victim.vae):
            z = victim.latent(images, generator=generator)
            return z, victim.vae.decode(z).mean

    (z, x_hat), (z_adv, adv_hat) = read(x), read(x_adv)
    return {
        "input": (x_adv - x).flatten(1).norm(dim=1),
        "input_linf": (x_adv - x).flatten(1).abs().amax(1),
        "latent": (z_adv - z).norm(dim=1),
        "output": (adv_hat - x_hat).flatten(1).norm(dim=1),
    }


def _log_likelihood(vae: VAE, x: Tensor, y: Tensor) -> Tensor:
    return vae.decode(vae.encode(y).mean).log_prob(x).flatten(1).sum(1)

"""Lipschitz-VAEs: orthonormal dense layers, gradient-preserving activations, chosen constants.

In training the gradients are tangent to the orthonormal matrices, and the weights are brought back
every few optimizer steps, outside autograd: no Björck iterations in the forward pass. The kernels
of convolutions are functions of unconstrained tensors. What is stored are plain layers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypedDict, Unpack, cast, final

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d

from robustvae import gate
from robustvae._options import with_defaults
from robustvae.errors import (
    ConfigError,
    MissingExtraError,
    NonFiniteError,
    ShapeError,
    check_choice,
    check_count,
    check_positive,
    check_sizes,
    install_command,
)
from robustvae.models.base import VAE
from robustvae.models.composition import Composition, Spread
from robustvae.models.likelihoods import Distribution, Gaussian
from robustvae.models.orthogonal import RAW, MoveChannels, convolutions, equip, kernel, raw_of
from robustvae.models.sorts import GroupSort, MaxMin
from robustvae.models.vae import LIKELIHOODS, likelihood_of, shortened
from robustvae.registry import register


def bjorck(weight: Tensor, steps: int = 1, order: int = 1) -> Tensor:
    """Björck's iteration towards the nearest matrix with orthonormal rows or columns.

    W <- W (I + Q/2 + 3 Q^2/8 + ... + (-1)^p C(-1/2, p) Q^p), Q = I - W^T W.

    Warning:
        It converges only from full rank and a spectral norm below sqrt(3) at order 1, below 1.47
        for orders up to 7: scale first.

    Args:
        weight: Matrix, (n, k); the shorter side becomes orthonormal. Differentiable.
        steps: Iterations.
        order: p, at least 1.

    Returns:
        Matrix, (n, k).

    Raises:
        ShapeError: Not a matrix.

    References:
        Björck & Bowie, 1971; [Barrett22] appendix B.1; Anil et al., 2019.

    Examples:
        >>> import torch
        >>> from robustvae.models.lipschitz import bjorck
        >>> bjorck(torch.diag(torch.tensor([0.8, 1.2])), steps=8)
        tensor([[1., 0.],
                [0., 1.]])
    """
    if weight.ndim != 2:
        raise ShapeError(f"weight must be a matrix, got {tuple(weight.shape)}")
    check_count(steps, "steps", least=0)
    check_count(order, "order")
    if weight.shape[0] < weight.shape[1]:
        return bjorck(weight.mT, steps, order).mT
    eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    for _ in range(steps):
        weight = weight @ _series(eye - weight.mT @ weight, order)
    return weight


class _Orthonormal(torch.autograd.Function):
    """Y = s (X W^T + b) with a gradient tangent to the orthonormal matrices: G - W G^T W.

    With D the gradient of Y, G = s D^T X, and E = s D W the gradient of X. As G is a sum over the
    batch, W G^T W = (X W^T)^T E: two factors that are there already, and a product as cheap as G
    itself. Exact for orthonormal W.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, scale: float) -> Tensor:
        return torch.addmm(bias.unsqueeze(1), weight, x.mT, beta=scale, alpha=scale).mT

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: Tensor
    ) -> None:
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, bias, y = ctx.saved_tensors
        scale = ctx.scale
        back = torch.addmm(x.mT, weight.mT, grad.mT, beta=0, alpha=scale).mT
        normal = torch.sub(y, bias, alpha=scale).mT @ back
        tangent = normal.addmm_(grad.mT, x, beta=-1 / scale, alpha=scale)
        return back, tangent, scale * grad.sum(0), None


@final
class Scale(nn.Module):
    """Multiply by a constant.

    Args:
        factor: The constant.
    """

    def __init__(self, factor: float) -> None:
        """Keep the constant."""
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """The same features, scaled."""
        return x * self.factor

    def extra_repr(self) -> str:
        """Show the constant."""
        return f"{self.factor:g}"


DRIFT = 0.25
"""Frobenius norm of I - W^T W (or I - W W^T) up to which a short gap between retractions grows;
from four times as much on it shrinks."""

NEAR = 0.05
"""Such a norm after which one more Björck step leaves nothing that matters."""

ARCHITECTURES = ("conv", "mlp")
SORTS: dict[str, type[nn.Module]] = {"groupsort": GroupSort, "maxmin": MaxMin}


@final
class LipschitzOptions(TypedDict, total=False):
    """Options of `LipschitzVAE`, which describes them."""

    hidden: Sequence[int] | None
    stddev_norm: float | None
    scale: float
    activation: str
    order: int
    retract_every: int
    architecture: str
    channels: Sequence[int] | None


_DEFAULTS: LipschitzOptions = {
    "hidden": None,
    "stddev_norm": None,
    "scale": 1.0,
    "activation": "groupsort",
    "order": 1,
    "retract_every": 32,
    "architecture": "mlp",
    "channels": None,
}


@register("model", "lipschitz-vae")
@gate.know_model
@final
class LipschitzVAE(VAE):
    """A VAE whose encoder and decoder have chosen Lipschitz constants.

    Each network has k dense layers with orthonormal weights, each output times K^(1/k), and a sort
    between. The encoder's mean has no last nonlinearity; its standard deviation is a constant, or a
    network of its own with a sigmoid; the decoder's logits pass through the likelihood's mean.

    The architecture "conv" has orthogonal convolutions (4 x 4 taps, stride 2, a zero pixel around)
    before the dense layers, their adjoints after the decoder's, and sorts over the channels. To be
    made anew or trained it needs the extra `lipschitz`; to be loaded and used it does not.

    Warning:
        `certify` reads its constants from the stored weights, not from these arguments. With a
        sigmoid at the end the decoder's mean is (K/4)-Lipschitz, and so is a sigmoid std head.

    Args:
        latent: Dimension d of the latent.
        image_shape: (C, H, W).
        encoder_lipschitz: K of the encoder's mean, and of the std head before its sigmoid.
        decoder_lipschitz: K of the decoder's logits.
        stddev: The constant sigma of every coordinate, or None for a learned one.
        likelihood: As of `vae`.
        options: Any of

            - hidden: Even widths of each network's dense layers, from the pixels inwards; by
              default (512, 512), or (256,) after convolutions;
            - stddev_norm: Greatest norm |sigma(x)| of a learned one; None for any;
            - scale: Standard deviation of the Gaussian likelihood, in pixel units, 1 by default;
            - activation: "groupsort" (the default) or "maxmin";
            - order: Order of the Björck iteration in `after_step`, 1 by default;
            - retract_every: Most optimizer steps between retractions, 32 by default; fewer while
              the weights move fast;
            - architecture: "mlp" (the default) or "conv";
            - channels: Even numbers of channels of the "conv", at least 16, from the pixels
              inwards; each convolution halves the image. By default (32, 64).

    Raises:
        UnknownNameError: An unknown likelihood, activation, architecture or option.
        RangeError: A constant, width or scale that is not positive.
        ConfigError: An odd width; channels that are few or odd, or given to the "mlp".
        ShapeError: `image_shape` is not (C, H, W), or cannot be halved so often.
        MissingExtraError: Convolutions made anew or trained without the extra `lipschitz`; raised
            at their first use, as loaded weights need no extra.

    References:
        [Barrett22] section 4, Algorithm 1, appendices B and F; Boissin et al., 2025
        (adaptive orthogonal convolutions).

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("lipschitz-vae", latent=4, image_shape=(1, 4, 4), hidden=[16])
        >>> q = vae.encode(torch.rand(3, 1, 4, 4))
        >>> q.mean.shape, float(q.stddev[0, 0])
        (torch.Size([3, 4]), 0.10000000149011612)
    """

    def __init__(
        self,
        latent: int = 10,
        image_shape: Sequence[int] = (1, 28, 28),
        encoder_lipschitz: float = 5.0,
        decoder_lipschitz: float = 5.0,
        stddev: float | None = 0.1,
        likelihood: str = "continuous_bernoulli",
        **options: Unpack[LipschitzOptions],
    ) -> None:
        """Build orthonormal networks; torch's global generator makes the first weights."""
        super().__init__()
        settings = with_defaults(LipschitzVAE, options, _DEFAULTS)
        hidden, architecture = settings["hidden"], settings["architecture"]
        scale, stddev_norm = settings["scale"], settings["stddev_norm"]
        activation, order = settings["activation"], settings["order"]
        retract_every = settings["retract_every"]
        check_count(latent, "latent")
        check_count(order, "order")
        check_count(retract_every, "retract_every")
        check_choice("likelihood", likelihood, LIKELIHOODS)
        check_choice("activation", activation, SORTS)
        check_choice("architecture", architecture, ARCHITECTURES)
        for value, name in (
            (encoder_lipschitz, "encoder_lipschitz"),
            (decoder_lipschitz, "decoder_lipschitz"),
            (0.1 if stddev is None else stddev, "stddev"),
            (1.0 if stddev_norm is None else stddev_norm, "stddev_norm"),
            (scale, "scale"),
        ):
            check_positive(value, name)
        if stddev is not None and stddev_norm is not None:
            raise ConfigError("stddev_norm needs a learned standard deviation: give stddev=None")
        check_sizes(image_shape, "image_shape", axes=3)
        if hidden is None:
            hidden = (512, 512) if architecture == "mlp" else (256,)
        check_sizes(hidden, "hidden")
        channels = _checked_channels(architecture, settings["channels"], image_shape)
        if any(width % 2 for width in hidden):
            raise ConfigError(f"widths in hidden must be even, got {list(hidden)}")
        self.latent = latent
        self.image_shape = (image_shape[0], image_shape[1], image_shape[2])
        self.likelihood = likelihood
        self.scale = float(scale)
        self.stddev = None if stddev is None else float(stddev)
        self.stddev_norm = None if stddev_norm is None else float(stddev_norm)
        self.order = order
        self.retract_every = retract_every
        self._config = {
            "latent": latent,
            "image_shape": list(image_shape),
            "hidden": list(hidden),
            "encoder_lipschitz": float(encoder_lipschitz),
            "decoder_lipschitz": float(decoder_lipschitz),
            "stddev": self.stddev,
            "likelihood": likelihood,
            "scale": self.scale,
            "activation": activation,
            "order": order,
            "retract_every": retract_every,
            "architecture": architecture,
            "channels": list(channels) if channels else None,
            "stddev_norm": self.stddev_norm,
        }
        sort = SORTS[activation]
        shapes = [self.image_shape]
        for wide in channels:
            shapes.append((wide, shapes[-1][1] // 2, shapes[-1][2] // 2))
        widths = [math.prod(shapes[-1]), *hidden, latent]
        layers = len(channels) + len(widths) - 1
        inwards, outwards = (k ** (1 / layers) for k in (encoder_lipschitz, decoder_lipschitz))

        def encoder() -> list[nn.Module]:
            images = _halving(shapes, inwards, sort)
            return [*images, nn.Flatten(), *_dense(widths, inwards, sort)]

        self.mean_net = nn.Sequential(*encoder())
        self.stddev_net = nn.Sequential(*encoder(), nn.Sigmoid()) if stddev is None else None
        self.decoder = nn.Sequential(
            *_dense(widths[::-1], outwards, sort),
            nn.Unflatten(1, shapes[-1]),
            *_doubling(shapes[::-1], outwards, sort),
        )
        self._unmade = False
        for layer in convolutions(self):
            try:
                equip(layer)
            except MissingExtraError:
                nn.init.zeros_(layer.weight)
                self._unmade = True
        self._since, self._gap = 0, 1
        self.finalize()

    def encode(self, x: Tensor) -> Gaussian:
        """q(z | x), Gaussian with diagonal covariance, (B, d)."""
        self.check(x)
        mean = self._run(self.mean_net, x)
        if self.stddev is not None:
            return Gaussian(mean, torch.full_like(mean, self.stddev))
        assert self.stddev_net is not None
        stddev = self._run(self.stddev_net, x)
        return Gaussian(
            mean, stddev if self.stddev_norm is None else shortened(stddev, self.stddev_norm)
        )

    def decode(self, z: Tensor) -> Distribution:
        """p(x | z), (B, C, H, W)."""
        return likelihood_of(self._run(self.decoder, z), self.likelihood, self.scale)

    def composition(self) -> Composition:
        """The networks for the mean, for the spread where it is learned, and the decoder."""
        if self.stddev_net is None:
            spread = Spread("constant", constant=self.stddev)
        else:
            spread = Spread("stddev", norm=self.stddev_norm)
        return Composition(
            trunk=nn.Identity(),
            mean_head=self.mean_net,
            spread=spread,
            spread_head=self.stddev_net,
            width=self.latent,
            decoder=self.decoder,
            likelihood=self.likelihood,
            scale=self.scale,
        )

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, complete."""
        return dict(self._config)

    def on_manifold(self) -> list[Tensor]:
        """The dense weights."""
        return [layer.weight for layer in self._layers()]

    @torch.no_grad()
    def after_step(self) -> None:
        """Bring the dense weights back towards orthonormality when it is time."""
        self._since += 1
        if self._since < self._gap:
            return
        near = (
            NEAR if self._gap == 1 else 1.0
        )  # weights that move fast are brought back all the way
        drift = max(_retract(layer.weight, self.order, near) for layer in self._layers())
        self._since = 0
        if drift < DRIFT * (1 + self._gap / 16):  # young models move fast: careful at first
            self._gap = min(2 * self._gap, self.retract_every)
        elif not drift < 4 * DRIFT:
            self._gap = 1 + self._gap // 4

    @property
    def training_state(self) -> dict[str, int]:
        """What decides the next steps beside the weights."""
        return {"since": self._since, "gap": self._gap}

    @training_state.setter
    def training_state(self, state: dict[str, int]) -> None:
        self._since, self._gap = state["since"], state["gap"]

    @torch.no_grad()
    def finalize(self) -> None:
        """Make every weight orthonormal to the last digit: the polar factor, in float64.

        Raises:
            NonFiniteError: A NaN or an infinity in the dense weights, or entries near either.
        """
        self._since, self._gap = 0, 1
        if not all(bool(layer.weight.double().square().sum() < 1e30) for layer in self._layers()):
            raise NonFiniteError("the weights of a Lipschitz-VAE must be finite before `finalize`")
        for layer in self._layers():
            _retract(layer.weight, 1, NEAR)
            layer.weight.copy_(_polar(layer.weight.double(), torch.finfo(layer.weight.dtype).eps))
        for convolution in [] if self._unmade else convolutions(self):
            raw = [tensor.double() for tensor in raw_of(convolution)]
            convolution.weight.copy_(kernel(convolution, raw))

    def _run(self, network: nn.Sequential, x: Tensor) -> Tensor:
        """The network's output; in training with tangent gradients for its weights."""
        if self._unmade:
            raise MissingExtraError(
                f"new Lipschitz convolutions need orthogonium: {install_command('lipschitz')}"
            )
        if not (self.training and torch.is_grad_enabled()):
            return cast(Tensor, network(x))
        with torch.autocast(x.device.type, enabled=False):  # the manifold wants all its digits
            return self._trained(network, x.to(self.dtype))

    def _trained(self, network: nn.Sequential, x: Tensor) -> Tensor:
        layers = iter(network)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                scale = cast(Scale, next(layers)).factor
                x = _Orthonormal.apply(x, layer.weight, layer.bias, scale)
            elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                weight = kernel(layer, raw_of(layer))
                layer.weight.data = weight.detach()  # what evaluation sees, also between epochs
                convolve = conv_transpose2d if isinstance(layer, nn.ConvTranspose2d) else conv2d
                x = convolve(x, weight, layer.bias, layer.stride, (1, 1))
            else:
                x = layer(x)
        return x

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Loaded convolutions are made, and bring the tensors that only training needs."""
        for layer_name, layer in self.named_modules():
            if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) or raw_of(layer):
                continue
            for name, tensor in state_dict.items():
                owner, _, attribute = name.removeprefix(prefix).rpartition(".")
                if owner == layer_name and attribute.startswith(RAW):
                    layer.register_parameter(attribute, nn.Parameter(torch.empty_like(tensor)))
        self._unmade = False
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _layers(self) -> Iterator[nn.Linear]:
        return (module for module in self.modules() if isinstance(module, nn.Linear))


def _series(defect: Tensor, order: int) -> Tensor:
    """I + Q/2 + 3 Q^2/8 + ... up to Q^order, a matrix product for each power above the first."""
    eye = torch.eye(len(defect), dtype=defect.dtype, device=defect.device)
    series = eye
    for k in range(order, 0, -1):  # Horner: C(2k, k) / 4^k is (2k - 1) / 2k times the last
        product = defect if k == order else defect @ series
        series = eye + (2 * k - 1) / (2 * k) * product
    return series


def _retract(weight: Tensor, order: int, near: float) -> float:
    """Björck steps, in place, the last of them from `near`; ||I - W^T W|| before the first."""
    if weight.shape[0] < weight.shape[1]:
        weight = weight.mT
    eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    drift = math.nan
    for turn in range(8):
        gram = weight.mT @ weight
        size = float((eye - gram).norm())
        if turn == 0:
            drift = size
            if size > 1:  # the spectral norm is at most sqrt(1 + size): from here on sqrt(2)
                shrink = 2 / (1 + size)
                weight.mul_(shrink**0.5)
                gram.mul_(shrink)
        if order == 1:
            weight.copy_(torch.addmm(weight, weight, gram, beta=1.5, alpha=-0.5))
        else:
            weight.copy_(weight @ _series(eye - gram, order))
        if not size > near:
            break
    return drift


def _polar(weight: Tensor, accuracy: float = 1e-16) -> Tensor:
    """The nearest matrix with orthonormal rows or columns, to better than `accuracy`."""
    if weight.shape[0] < weight.shape[1]:
        return _polar(weight.mT, accuracy).mT
    eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    orthogonal = weight
    for _ in range(6):
        defect = eye - orthogonal.mT @ orthogonal
        size = float(defect.norm())
        if not size < 1:
            break
        orthogonal = orthogonal @ _series(defect, 1)
        if size**2 < 0.1 * accuracy:  # each step squares what is left
            return orthogonal
    left, _, right = torch.linalg.svd(weight, full_matrices=False)
    return left @ right


def _dense(widths: Sequence[int], factor: float, sort: type[nn.Module]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), Scale(factor), sort()]
    return layers[:-1]


def _halving(
    shapes: Sequence[tuple[int, int, int]], factor: float, sort: type[nn.Module]
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for (fan_in, *_), (fan_out, *_) in itertools.pairwise(shapes):
        layers += [nn.Conv2d(fan_in, fan_out, 4, 2, 1), Scale(factor), *_over_channels(sort)]
    return layers


def _doubling(
    shapes: Sequence[tuple[int, int, int]], factor: float, sort: type[nn.Module]
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for (fan_in, *_), (fan_out, *_) in itertools.pairwise(shapes):
        convolution = nn.ConvTranspose2d(fan_in, fan_out, 4, 2, 1)
        layers += [*_over_channels(sort), convolution, Scale(factor)]
    return layers


def _over_channels(sort: type[nn.Module]) -> list[nn.Module]:
    return [MoveChannels(last=True), sort(), MoveChannels(last=False)]


def _checked_channels(
    architecture: str, channels: Sequence[int] | None, image_shape: Sequence[int]
) -> Sequence[int]:
    if architecture == "mlp":
        if channels is not None:
            raise ConfigError("channels need architecture='conv', got 'mlp'")
        return ()
    channels = (32, 64) if channels is None else channels
    check_sizes(channels, "channels")
    if not channels or any(wide % 2 or wide < 16 for wide in channels):
        raise ConfigError(f"channels must be even and at least 16, got {list(channels)}")
    if any(side % 2 ** len(channels) for side in image_shape[1:]):
        raise ShapeError(
            f"{len(channels)} convolutions want sides divisible by {2 ** len(channels)}, "
            f"got {image_shape[1]} x {image_shape[2]}"
        )
    return channels

"""The variational autoencoder as everything else sees it."""

from __future__ import annotations

import abc
import contextlib
import copy
import math
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from robustvae.errors import (
    ConfigError,
    DtypeError,
    ModelError,
    NonFiniteError,
    ShapeError,
    UnsupportedError,
    check_type,
)
from robustvae.models.composition import Composition, Paths, paths_of
from robustvae.models.likelihoods import Distribution, Gaussian
from robustvae.registry import family_base


@family_base("model")
class VAE(nn.Module, abc.ABC):
    """A variational autoencoder with one flat latent.

    Attributes:
        latent: Dimension d of the latent.
        image_shape: (C, H, W) of the images.
        output_only: Whether the model is a black box, of which only the output can be judged.
        widths: Widths of the layers that the flat latent is made of, from the data upwards; None
            where it is one layer.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> isinstance(vae, rv.VAE)
        True
        >>> x = torch.rand(3, 1, 4, 4)
        >>> vae.decode(vae.encode(x).mean).mean.shape
        torch.Size([3, 1, 4, 4])
    """

    latent: int
    image_shape: tuple[int, int, int]
    widths: tuple[int, ...] | None = None
    output_only: bool = False

    @abc.abstractmethod
    def encode(self, x: Tensor) -> Distribution:
        """The approximate posterior q(z | x).

        Args:
            x: Images in [0, 1], (B, C, H, W).

        Returns:
            A distribution over latents, (B, d).
        """

    @abc.abstractmethod
    def decode(self, z: Tensor) -> Distribution:
        """The likelihood p(x | z), whose mean is the reconstruction.

        Args:
            z: Latents, (B, d).

        Returns:
            A distribution over images, (B, C, H, W).
        """

    def prior(self) -> Distribution:
        """The prior p(z), of shape (d,); standard normal unless a model says otherwise."""
        zeros = torch.zeros(self.latent, dtype=self.dtype, device=self.device)
        return Gaussian(zeros, torch.ones_like(zeros))

    def given(self, z: Tensor) -> tuple[Distribution, Distribution]:
        """p(x | z) and p(z), the latter possibly as its layers' conditionals at this very `z`.

        For models in which both come from one pass through the network.

        Args:
            z: Latents, (B, d).

        Returns:
            Distributions over images, (B, C, H, W), and latents, (d,) or (B, d).
        """
        return self.decode(z), self.prior()

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z) + log p(z) in nats, (B,).

        Args:
            x: Images in [0, 1], (B, C, H, W).
            z: Latents, (B, d).

        Raises:
            DtypeError: Not tensors of floating type, or not of the model's type.
            ShapeError: `x` is not (B, *image_shape), or `z` not (B, d).
        """
        self.check(x)
        self.check_latent(z, len(x))
        likelihood, prior = self.given(z)
        return likelihood.log_prob(x).flatten(1).sum(1) + prior.log_prob(z).sum(1)

    def composition(self) -> Composition:
        """The networks that the model is made of, from which bounds by the weights are computed.

        Only models of this library are believed; of any other model, `paths` are traced.

        Raises:
            UnsupportedError: The model does not state them.
        """
        raise UnsupportedError(
            f"{type(self).__name__} states no networks that bounds could be computed from; use "
            "methods=['smoothing'], which reads no weights"
        )

    def paths(self) -> Paths:
        """`encode` and `decode` as modules that a trace can read."""
        return paths_of(self)

    def on_manifold(self) -> list[Tensor]:
        """Weights whose gradients are tangent to a manifold that they should stay on."""
        return []

    def after_step(self) -> None:
        """Training calls this after every optimizer step; constrained models stay near theirs."""

    def finalize(self) -> None:
        """Training calls this after every epoch; constrained models meet theirs exactly."""

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make this model again with `models.create`; JSON values only."""
        return {}

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the parameters."""
        return next((p.dtype for p in self.parameters()), torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def check(self, x: Tensor, *, name: str = "x") -> None:
        """Raise unless `x` is a batch of images that this model can read.

        The range of the pixels is not looked at here: an attack without a box may leave it.

        Raises:
            DtypeError: Not a tensor of floating type, or not the model's type.
            ShapeError: Not (B, *image_shape).
        """
        if is_placeholder(x):
            return
        _check_floating(x, name)
        if x.ndim != 4 or tuple(x.shape[1:]) != self.image_shape:
            channels, height, width = self.image_shape
            raise ShapeError(
                f"{name} must be (B, {channels}, {height}, {width}), got {tuple(x.shape)}"
            )
        self._check_dtype(x, name)

    def check_latent(self, z: Tensor, batch: int, *, name: str = "z") -> None:
        """Raise unless `z` holds the latents of `batch` images that this model can decode.

        Raises:
            DtypeError: Not a tensor of floating type, or not the model's type.
            ShapeError: Not (batch, d).
        """
        if is_placeholder(z):
            return
        _check_floating(z, name)
        if tuple(z.shape) != (batch, self.latent):
            raise ShapeError(f"{name} must be ({batch}, {self.latent}), got {tuple(z.shape)}")
        self._check_dtype(z, name)

    def _check_dtype(self, value: Tensor, name: str) -> None:
        if value.dtype != self.dtype:
            raise DtypeError(
                f"{name} is {value.dtype} and the model {self.dtype}: "
                f"convert one of them, with {name}.to({self.dtype}) or vae.to({value.dtype})"
            )


class _Shared:
    """What contexts change on objects, given back when the last of them ends, in any thread.

    Two searches on one model overlap in time: the one that ends first must not take the other's
    evaluation mode or frozen weights away.
    """

    def __init__(self, attribute: str) -> None:
        self.attribute = attribute
        self._lock = threading.Lock()
        self._entries: dict[int, tuple[Any, bool, int]] = {}  # the object, its value, its users

    def hold(self, objects: Iterable[Any]) -> list[Any]:
        """Set the attribute of each object to False, and remember what it was."""
        objects = list(objects)
        with self._lock:
            # all are read first: a compiled module's attribute is that of the module inside
            for one in objects:
                _, before, users = self._entries.get(
                    id(one), (one, getattr(one, self.attribute), 0)
                )
                self._entries[id(one)] = (one, before, users + 1)
            for one in objects:
                if getattr(one, self.attribute):
                    setattr(one, self.attribute, False)
        return objects

    def release(self, objects: Iterable[Any]) -> None:
        """Give back what the objects had, where nobody holds them any more."""
        with self._lock:
            for one in objects:
                _, before, users = self._entries.pop(id(one))
                if users > 1:
                    self._entries[id(one)] = (one, before, users - 1)
                elif getattr(one, self.attribute) != before:
                    setattr(one, self.attribute, before)


_MODES = _Shared("training")
_GRADIENTS = _Shared("requires_grad")


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within: evaluation mode; afterwards all as it was. Safe with several threads on one model.

    Examples:
        >>> import torch
        >>> from robustvae.models.base import evaluating
        >>> layer = torch.nn.Linear(2, 2)
        >>> with evaluating(layer):
        ...     layer.training
        False
        >>> layer.training
        True
    """
    parts = _MODES.hold(_modules(module))
    try:
        yield
    finally:
        _MODES.release(parts)


def _modules(module: nn.Module) -> list[nn.Module]:
    """The module and all below it, each once.

    What `Module.modules` gives, without names: searches enter these contexts at every step.
    """
    modules: dict[int, nn.Module] = {}
    waiting = [module]
    while waiting:
        one = waiting.pop()
        if id(one) not in modules:
            modules[id(one)] = one
            waiting.extend(child for child in one._modules.values() if child is not None)
    return list(modules.values())


def widened(vae: VAE) -> VAE:
    """A copy of the model in float32, where it is in half precision; else the model itself.

    Half precision has steps that searches by gradients do not see past.

    Raises:
        UnsupportedError: It is in half precision and cannot be copied.
    """
    if not {p.dtype for p in vae.parameters()} & {torch.float16, torch.bfloat16}:
        return vae
    return copied(vae).to(torch.float32)


def copied(vae: VAE) -> VAE:
    """A copy of the model.

    Raises:
        UnsupportedError: It cannot be copied.
    """
    try:
        return copy.deepcopy(vae)
    except Exception as error:  # a stranger's module may hold anything
        raise UnsupportedError(
            f"the model cannot be copied into another type ({type(error).__name__}): load it in "
            "that type"
        ) from error


def move(vae: VAE, device: str | torch.device) -> VAE:
    """The model, moved to a device that computes here.

    Raises:
        ConfigError: A device that is not known, not there, or holds no values.
    """
    try:
        torch.ones(1, device=device).item()  # weights that are moved to "meta" are gone
        return vae.to(device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        line = " ".join(str(error).split())[:120]
        raise ConfigError(f"device {str(device)!r} cannot be used here: {line}") from None


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within: evaluation mode and no gradients for the weights; afterwards all as it was.

    Safe with several threads on one model. `torch.func` sees through it.

    Examples:
        >>> import torch
        >>> from robustvae.models.base import frozen
        >>> layer = torch.nn.Linear(2, 2)
        >>> with frozen(layer):
        ...     layer.weight.requires_grad, layer.training
        (False, False)
        >>> layer.weight.requires_grad, layer.training
        (True, True)
    """
    parts = _MODES.hold(_modules(module))
    try:
        every = (p for part in parts for p in part._parameters.values() if p is not None)
        parameters = _GRADIENTS.hold({id(p): p for p in every}.values())
        try:
            yield
        finally:
            _GRADIENTS.release(parameters)
    finally:
        _MODES.release(parts)


def is_placeholder(value: Any) -> bool:
    """Whether this stands for a tensor in a trace: it has neither type nor shape to look at."""
    return isinstance(value, torch.fx.Proxy)


def _check_floating(value: Tensor, name: str) -> None:
    check_type(value, name, Tensor)
    if value.is_meta:
        raise DtypeError(f"{name} must hold values, got one on the device meta: make it on a CPU")
    if not value.is_floating_point():
        raise DtypeError(f"{name} must be of floating type, got {value.dtype}")


def check_weights(module: nn.Module) -> None:
    """Raise if any weight or buffer is a NaN or an infinity, or has no values yet.

    Whatever is measured on such a model would look like a result: entry points ask this first.

    Raises:
        NonFiniteError: A NaN or an infinity.
        ModelError: A lazy layer that was never called.
    """
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, Tensor):  # quantized layers hold types and settings too
            continue
        if nn.parameter.is_lazy(tensor):
            raise ModelError(
                f"weights must have values, got the lazy {name!r} without any: call the model once"
            )
        # a finite sum has finite terms, and is the quicker to make; a sum may overflow all the same
        if not tensor.is_floating_point() or math.isfinite(tensor.sum().item()):
            continue
        if not bool(tensor.isfinite().all()):
            raise NonFiniteError(f"weights must be finite, got a NaN or an infinity in {name!r}")

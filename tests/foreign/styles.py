"""Autoencoders in the styles of public code, written for these tests; small, and not trained.

Each style has the module, what `wrap` is told, and the two functions of a hand-written reference:
inputs as the model reads them to mean codes (B, d), and codes to outputs in the model's range.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal


@dataclass(frozen=True)
class Style:
    """One public style."""

    make: Callable[[], Any]
    shape: tuple[int, ...]
    encode: Callable[[Any, Tensor], Tensor]
    decode: Callable[[Any, Tensor], Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    range: tuple[float, float] = (0.0, 1.0)
    is_black_box: bool = False
    is_straight_through: bool = False


STYLES: dict[str, Style] = {}


def style(name: str, shape: tuple[int, ...], encode: Any, decode: Any, **more: Any) -> Any:
    def add(make: Callable[[], Any]) -> Callable[[], Any]:
        STYLES[name] = Style(make, shape, encode, decode, **more)
        return make

    return add


def sampled(mean: Tensor, log_var: Tensor) -> Tensor:
    return mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)


IMAGE = (1, 8, 8)
COLOR = (3, 8, 8)


@style(
    "the tutorial's rows of pixels",
    IMAGE,
    lambda m, x: m.encode(x.reshape(-1, 64))[0],
    lambda m, z: m.decode(z),
)
class Rows(nn.Module):
    """Linear layers on flattened pictures; forward flattens, encode does not."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(64, 20), nn.Linear(20, 4), nn.Linear(20, 4)
        self.fc3, self.fc4 = nn.Linear(4, 20), nn.Linear(20, 64)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.fc1(x))
        return self.fc21(h), self.fc22(h)

    def decode(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z))))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encode(x.view(-1, 64))
        return self.decode(sampled(mean, log_var)), mean, log_var


class Encoder(nn.Module):
    """A convolution whose output is viewed, not reshaped."""

    def __init__(self, channels: int = 1, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 4, 2, 1)
        self.head = nn.Linear(128, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)).view(len(x), -1))


class Decoder(nn.Module):
    """A transposed convolution after a view."""

    def __init__(self, channels: int = 1, latent: int = 4) -> None:
        super().__init__()
        self.fc = nn.Linear(latent, 128)
        self.up = nn.ConvTranspose2d(8, channels, 4, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.up(F.relu(self.fc(z)).view(-1, 8, 4, 4)))


@style(
    "parts that view",
    COLOR,
    lambda m, x: m.encoder(x)[0],
    lambda m, z: m.decoder(z),
)
class Parts(nn.Module):
    """An encoder that returns a tuple, a decoder, and forward with the sample last."""

    class Head(Encoder):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x).view(-1, 4, 2).unbind(-1)

    def __init__(self) -> None:
        super().__init__()
        self.img_size = COLOR
        self.encoder, self.decoder = Parts.Head(3), Decoder(3)

    def forward(self, x: Tensor) -> Any:
        dist = self.encoder(x)
        sample = sampled(*dist) if self.training else dist[0]
        return self.decoder(sample), dist, sample


@style(
    "one tensor cut in two",
    IMAGE,
    lambda m, x: m._encode(x)[:, :4],
    lambda m, z: torch.sigmoid(m._decode(z)),
    options={"likelihood": "bernoulli"},
)
class Halves(nn.Module):
    """The encoder returns mean and log-variance side by side; the decoder returns logits."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Flatten())
        self.head, self.fc = nn.Linear(128, 8), nn.Linear(4, 64)

    def _encode(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))

    def _decode(self, z: Tensor) -> Tensor:
        return 3 * self.fc(z).view(-1, 1, 8, 8)

    def forward(self, x: Tensor) -> Any:
        stats = self._encode(x)
        mean, log_var = stats[:, :4], stats[:, 4:]
        return self._decode(sampled(mean, log_var)), mean, log_var


@style(
    "lists, and the input among the outputs",
    COLOR,
    lambda m, x: m.encode(x)[0],
    lambda m, z: m.decode(z),
    options={"pixels": (-1, 1)},
    range=(-1.0, 1.0),
)
class Lists(nn.Module):
    """Batch norm, leaky ReLU, tanh; forward returns [reconstruction, input, mu, log_var]."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.LeakyReLU(), nn.Conv2d(8, 8, 3, 2, 1)
        )
        self.fc_mu, self.fc_var = nn.Linear(32, 4), nn.Linear(32, 4)
        self.decoder_input = nn.Linear(4, 32)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(8, 8, 3, 2, 1, 1),
            nn.BatchNorm2d(8),
            nn.LeakyReLU(),
            nn.ConvTranspose2d(8, 3, 3, 2, 1, 1),
            nn.Tanh(),
        )

    def encode(self, x: Tensor) -> list[Tensor]:
        h = torch.flatten(self.encoder(x), start_dim=1)
        return [self.fc_mu(h), self.fc_var(h)]

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.decoder_input(z).view(-1, 8, 2, 2))

    def forward(self, x: Tensor, **kwargs: Any) -> list[Tensor]:
        mean, log_var = self.encode(x)
        return [self.decode(sampled(mean, log_var)), x, mean, log_var]


class Layers(nn.Module):
    """The layers that most of the following share."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh())
        self.mu, self.lv = nn.Linear(16, 4), nn.Linear(16, 4)
        self.dec = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 64), nn.Sigmoid())

    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return 3 * self.mu(h), self.lv(h) - 3

    def image(self, z: Tensor) -> Tensor:
        return self.dec(z).view(-1, 1, 8, 8)


def shared(name: str, **more: Any) -> Any:
    return style(name, IMAGE, lambda m, x: m.code(x)[0], lambda m, z: m.dec(z), **more)


@shared("forward, mean first")
class MeanFirst(Layers):
    def forward(self, x: Tensor) -> Any:
        mean, log_var = self.code(x)
        return mean, log_var, self.image(sampled(mean, log_var))


@shared("forward, log-variance first")
class LogVarFirst(Layers):
    def forward(self, x: Tensor) -> Any:
        mean, log_var = self.code(x)
        return log_var, mean, self.image(sampled(mean, log_var))


@shared("dictionary")
class Dictionary(Layers):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mean, log_var = self.code(x)
        z = sampled(mean, log_var)
        return {"z": z, "logvar": log_var, "mu": mean, "x_hat": self.image(z)}


@dataclass
class Fields:
    recon: Tensor
    z_mean: Tensor
    z_log_var: Tensor


@shared("dataclass")
class DataClass(Layers):
    def forward(self, x: Tensor) -> Fields:
        mean, log_var = self.code(x)
        return Fields(self.image(sampled(mean, log_var)), mean, log_var)


Named = namedtuple("Named", "out mean std")


@shared("named tuple with a standard deviation")
class NamedTuple(Layers):
    def forward(self, x: Tensor) -> Named:
        mean, log_var = self.code(x)
        std = torch.exp(0.5 * log_var)
        return Named(self.image(mean + std * torch.randn_like(std)), mean, std)


@shared("standard deviation without a name")
class Spread(Layers):
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.code(x)
        return mean, torch.exp(0.5 * log_var)

    def decode(self, z: Tensor) -> Tensor:
        return self.image(z)

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.encode(x)
        return self.decode(mean + std * torch.randn_like(std))


@shared("sample, mean and log-variance from encode")
class SampleToo(Layers):
    def encode(self, x: Tensor) -> Any:
        mean, log_var = self.code(x)
        return sampled(mean, log_var), mean, log_var

    def decode(self, z: Tensor) -> Tensor:
        return self.image(z)


@shared("torch distributions")
class Distributions(Layers):
    def encode(self, x: Tensor) -> Normal:
        mean, log_var = self.code(x)
        return Normal(mean, torch.exp(0.5 * log_var))

    def decode(self, z: Tensor) -> Bernoulli:
        return Bernoulli(probs=self.image(z))


@shared("dropout")
class Dropout(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.trunk.append(nn.Dropout(0.5))

    def encode(self, x: Tensor) -> Any:
        return self.code(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.image(z)


@shared("batch norm of features")
class Features(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.trunk.append(nn.BatchNorm1d(16))

    def encode(self, x: Tensor) -> Any:
        return self.code(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.image(z)


@style(
    "lightning module",
    IMAGE,
    lambda m, x: m.model.code(x)[0],
    lambda m, z: m.model.dec(z),
)
class LightningStyle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Distributions()
        self.loss = nn.MSELoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.model.decode(self.model.encode(x).rsample()).mean

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self(batch[0]), batch[0])


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.q = nn.GroupNorm(2, channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.q(self.norm(x).view(b, c, h * w).transpose(1, 2))
        mixed = F.scaled_dot_product_attention(tokens[:, None], tokens[:, None], tokens[:, None])
        return x + mixed[:, 0].transpose(1, 2).reshape(b, c, h, w)


class LatentDist:
    """After the posterior of latent-diffusion code."""

    def __init__(self, moments: Tensor) -> None:
        self.mean, self.logvar = moments.chunk(2, dim=1)
        self.std = torch.exp(0.5 * self.logvar.clamp(-30, 20))

    def sample(self) -> Tensor:
        return self.mean + self.std * torch.randn_like(self.std)

    def mode(self) -> Tensor:
        return self.mean


@style(
    "latent diffusion",
    COLOR,
    lambda m, x: ((m.encode(x).latent_dist.mean - 0.1) * 0.5).flatten(1),
    lambda m, z: m.decode(z.view(-1, 2, 4, 4) / 0.5 + 0.1).sample,
    range=(-1.0, 1.0),
)
class LatentDiffusion(nn.Module):
    """GroupNorm, attention, 4-D codes with scale and shift, images in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(scaling_factor=0.5, shift_factor=0.1, sample_size=8)
        self.down = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.SiLU(), Attention(4), nn.Conv2d(4, 4, 1)
        )
        self.up = nn.Sequential(
            nn.Conv2d(2, 4, 3, 1, 1), Attention(4), nn.Upsample(scale_factor=2), nn.Conv2d(4, 3, 1)
        )

    def encode(self, x: Tensor) -> Any:
        return SimpleNamespace(latent_dist=LatentDist(self.down(x)))

    def decode(self, z: Tensor) -> Any:
        return SimpleNamespace(sample=self.up(z))

    def forward(self, x: Tensor) -> Any:
        return self.decode(self.encode(x).latent_dist.sample())


@style(
    "tiny latent diffusion",
    COLOR,
    lambda m, x: m.encode(x).latents.flatten(1),
    lambda m, z: m.decode(z.view(-1, 2, 4, 4)).sample,
    range=(-1.0, 1.0),
)
class TinyLatentDiffusion(LatentDiffusion):
    """Codes without a spread."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"scaling_factor": 1.0}

    def encode(self, x: Tensor) -> Any:
        return SimpleNamespace(latents=self.down(x)[:, :2])

    def forward(self, x: Tensor) -> Any:
        return self.decode(self.encode(x).latents)


class ModelOutput(dict):
    """After pythae's outputs: entries that are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class OutputEncoder(Layers):
    def forward(self, x: Tensor) -> ModelOutput:
        mean, log_var = self.code(x)
        return ModelOutput(embedding=mean, log_covariance=log_var)


class OutputDecoder(Layers):
    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.image(z))


@style(
    "pythae model",
    IMAGE,
    lambda m, x: m.encoder.code(x)[0],
    lambda m, z: m.decoder.dec(z),
)
class PythaeStyle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model_config = SimpleNamespace(
            input_dim=IMAGE, reconstruction_loss="mse", latent_dim=4
        )
        self.encoder, self.decoder = OutputEncoder(), OutputDecoder()

    def forward(self, inputs: Any, **kwargs: Any) -> ModelOutput:
        code = self.encoder(inputs["data"])
        z = sampled(code.embedding, code.log_covariance)
        return ModelOutput(recon_x=self.decoder(z).reconstruction, z=z)


@style(
    "pythae autoencoder without covariance",
    IMAGE,
    lambda m, x: m.encoder.code(x)[0],
    lambda m, z: m.decoder.dec(z),
)
class PythaePlain(PythaeStyle):
    class Bare(Layers):
        def forward(self, x: Tensor) -> ModelOutput:
            return ModelOutput(embedding=self.code(x)[0])

    def __init__(self) -> None:
        super().__init__()
        self.encoder = PythaePlain.Bare()


class Codebook(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 4)

    def forward(self, z: Tensor) -> Any:
        rows = z.permute(0, 2, 3, 1).reshape(-1, 4)
        numbers = torch.cdist(rows, self.embedding.weight).argmin(1)
        q = self.embedding(numbers).view(len(z), *z.shape[2:], 4).permute(0, 3, 1, 2).contiguous()
        loss = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(q.detach(), z)
        return z + (q - z).detach(), loss, numbers.view(len(z), -1)


@style(
    "vector-quantized",
    COLOR,
    lambda m, x: m.encode(x)[0].flatten(1),
    lambda m, z: m.decode(m.vq_layer(z.view(-1, 4, 4, 4))[0]),
    is_straight_through=True,
)
class VectorQuantized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.vq_layer = nn.Conv2d(3, 4, 4, 2, 1), Codebook()
        self.decoder = nn.Sequential(nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Sigmoid())

    def encode(self, x: Tensor) -> list[Tensor]:
        return [self.encoder(x)]

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def forward(self, x: Tensor) -> Any:
        q, loss, _ = self.vq_layer(self.encode(x)[0])
        return [self.decode(q), x, loss]


class Flow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.u, self.w = nn.Parameter(torch.full((4,), 0.3)), nn.Parameter(torch.ones(4))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        inner = torch.tanh(z @ self.w)
        return z + self.u * inner[:, None], inner


@style(
    "flow posterior",
    IMAGE,
    lambda m, x: m.flow(m.code(x)[0])[0],
    lambda m, z: m.dec(z),
)
class FlowPosterior(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.flow = Flow()

    def encode(self, x: Tensor) -> Any:
        return self.code(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.image(z)

    def forward(self, x: Tensor) -> Any:
        mean, log_var = self.encode(x)
        return self.decode(self.flow(sampled(mean, log_var))[0]), mean, log_var


@shared("learned prior")
class LearnedPrior(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.prior_means = nn.Parameter(torch.randn(5, 4))
        self.prior_log_vars = nn.Parameter(torch.zeros(5, 4))

    def encode(self, x: Tensor) -> Any:
        return self.code(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.image(z)


@style(
    "hierarchical",
    IMAGE,
    lambda m, x: m.encode(x)[0],
    lambda m, z: m.dec(z),
)
class Hierarchical(nn.Module):
    """Two layers of codes, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom, self.top = nn.Linear(64, 8), nn.Linear(4, 4)
        self.dec = nn.Sequential(nn.Linear(6, 64), nn.Sigmoid())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, spread = self.bottom(x.flatten(1)).chunk(2, 1)
        second, top_spread = self.top(torch.tanh(first)).chunk(2, 1)
        return torch.cat([first, second], 1), torch.cat([spread, top_spread], 1)

    def decode(self, z: Tensor) -> Tensor:
        return self.dec(z).view(-1, 1, 8, 8)


@style(
    "two scales",
    IMAGE,
    lambda m, x: torch.cat([mean for mean, _ in m.encode(x)], 1),
    lambda m, z: m.decode([z[:, :4], z[:, 4:]]),
)
class TwoScales(nn.Module):
    """A list of a mean and a log-variance for each scale; the decoder takes a list of codes."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom, self.top = nn.Linear(64, 8), nn.Linear(4, 4)
        self.dec = nn.Sequential(nn.Linear(6, 64), nn.Sigmoid())

    def encode(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        first, spread = self.bottom(x.flatten(1)).chunk(2, 1)
        second, top_spread = self.top(torch.tanh(first)).chunk(2, 1)
        return [(first, spread - 2), (second, top_spread - 2)]

    def decode(self, codes: list[Tensor]) -> Tensor:
        return self.dec(torch.cat(codes, 1)).view(-1, 1, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode([sampled(mean, log_var) for mean, log_var in self.encode(x)])


@style(
    "audio",
    (1, 64),
    lambda m, x: m.encoder(x).flatten(1),
    lambda m, z: m.decoder(z.view(-1, 2, 16)),
    options={"image_shape": (1, 64), "pixels": (-1, 1)},
    range=(-1.0, 1.0),
)
class Audio(nn.Module):
    """Waves in [-1, 1], (B, 1, T), codes (B, 2, T / 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(1, 2, 8, 4, 2)
        self.decoder = nn.Sequential(nn.ConvTranspose1d(2, 1, 8, 4, 2), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


@style(
    "table",
    (10,),
    lambda m, x: m.encode(x)[0],
    lambda m, z: m.decode(z),
    options={"image_shape": (10,), "pixels": (-3, 3)},
    range=(-3.0, 3.0),
)
class Table(nn.Module):
    """Rows of ten numbers, standardized."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.out = nn.Linear(10, 6), nn.Linear(3, 10)

    def encode(self, x: Tensor) -> Any:
        return self.enc(x).split(3, dim=-1)

    def decode(self, z: Tensor) -> Tensor:
        return self.out(z)


@style(
    "video",
    (1, 4, 4, 4),
    lambda m, x: m.encoder(x),
    lambda m, z: m.decoder(z),
    options={"image_shape": (1, 4, 4, 4)},
)
class Video(nn.Module):
    """Clips (B, C, T, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv3d(1, 2, 2, 2), nn.Flatten(), nn.Linear(16, 4))
        self.decoder = nn.Sequential(nn.Linear(4, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 4, 4, 4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


@style(
    "one sequence",
    IMAGE,
    lambda m, x: m[:4](x),
    lambda m, z: m[4:](z),
)
def sequence() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.ReLU(),
        nn.Linear(16, 4),
        nn.Linear(4, 64),
        nn.Sigmoid(),
        nn.Unflatten(1, IMAGE),
    )


@style(
    "learned codec",
    COLOR,
    lambda m, x: m.g_a(x).flatten(1),
    lambda m, z: m.g_s((z.view(-1, 4, 4, 4) - m.bottleneck_means).round() + m.bottleneck_means),
    is_straight_through=True,
)
class Codec(nn.Module):
    """After factorized-prior codecs: analysis, rounding about medians, synthesis, likelihoods."""

    def __init__(self) -> None:
        super().__init__()
        self.g_a = nn.Conv2d(3, 4, 4, 2, 1)
        self.g_s = nn.ConvTranspose2d(4, 3, 4, 2, 1)
        self.register_buffer("bottleneck_means", torch.full((1, 4, 1, 1), 0.1))

    def entropy_bottleneck(self, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            rounded = y + torch.rand_like(y) - 0.5
        else:
            rounded = (y - self.bottleneck_means).round() + self.bottleneck_means
        return rounded, torch.exp(-rounded.square())

    def forward(self, x: Tensor) -> dict[str, Any]:
        y_hat, likelihoods = self.entropy_bottleneck(self.g_a(x))
        return {"x_hat": self.g_s(y_hat), "likelihoods": {"y": likelihoods}}


@style(
    "forward alone",
    IMAGE,
    lambda m, x: m.inward(x)[0],
    lambda m, z: m.outward(z),
)
class ForwardAlone(nn.Module):
    """A textbook's class: the draw stands inline, and no part of it decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.image_shape = IMAGE
        self.fc1, self.fc21, self.fc22 = nn.Linear(64, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.fc3, self.fc4 = nn.Linear(4, 16), nn.Linear(16, 64)

    def inward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.fc1(x.view(-1, 64)))
        return 3 * self.fc21(h), self.fc22(h)

    def outward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z))))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.inward(x)
        return self.outward(sampled(mean, log_var)), mean, log_var


@style(
    "forward only",
    IMAGE,
    lambda m, x: x.flatten(1),
    lambda m, z: m(z.view(-1, 1, 8, 8)),
    is_black_box=True,
)
class ForwardOnly(nn.Module):
    """Layers in one list, called inline: no part of it decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(16, 64) / 8, torch.randn(64, 16) / 4])

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(F.linear(x.reshape(len(x), -1), self.weights[0]))
        return torch.sigmoid(F.linear(h, self.weights[1])).view_as(x)


@style(
    "skip connections",
    IMAGE,
    lambda m, x: x.flatten(1),
    lambda m, z: m(z.view(-1, 1, 8, 8)),
    is_black_box=True,
)
class Skips(nn.Module):
    """A U-Net: the decoder reads more than the code."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(1, 4, 4, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.last = nn.ConvTranspose2d(8, 1, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.down(x))
        return torch.sigmoid(self.last(torch.cat([h, torch.relu(self.middle(h))], 1)))


@style(
    "in-place encoder",
    IMAGE,
    lambda m, x: m.code(x - 0.5)[0],
    lambda m, z: m.dec(z),
)
class InPlace(Layers):
    def encode(self, x: Tensor) -> Any:
        x.sub_(0.5)
        return self.code(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.image(z)


@style(
    "object with methods",
    IMAGE,
    lambda m, x: m.layers.code(x)[0],
    lambda m, z: m.layers.dec(z),
)
class Holder:
    """No module at all: an object that holds one."""

    def __init__(self) -> None:
        self.layers = Layers()

    def encode(self, x: Tensor) -> Any:
        return self.layers.code(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.layers.image(z)

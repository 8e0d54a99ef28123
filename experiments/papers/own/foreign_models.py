# ruff: noqa: D102, D106 - methods of strangers' models are known by their names
"""Ten small autoencoders written after public code, each with its own calls, sizes and losses.

None of them imports this library: they stand for other people's models. Each reads digits of
8 x 8 pixels and is trained in seconds; `EXTRA` says what its one line of `rv.wrap` has to be told.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CODE = 8


def dense(*widths: int, last: nn.Module | None = None) -> nn.Sequential:
    """Linear layers with ReLU between."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1], *([] if last is None else [last]))


def sampled(mean: Tensor, log_var: Tensor) -> Tensor:
    """A reparameterized draw, from torch's global generator, as such code does."""
    return mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)


def divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL to the standard normal, per input."""
    return -0.5 * (1 + log_var - mean.square() - log_var.exp()).flatten(1).sum(1)


class Tutorial(nn.Module):
    """After the examples' VAE: fc1, fc21, fc22, fc3, fc4 on rows of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(64, 96), nn.Linear(96, CODE), nn.Linear(96, CODE)
        self.fc3, self.fc4 = nn.Linear(CODE, 96), nn.Linear(96, 64)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.fc1(x))
        return self.fc21(h), self.fc22(h)

    def decode(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z))))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encode(x.view(-1, 64))
        return self.decode(sampled(mean, log_var)), mean, log_var


class Convolutional(nn.Module):
    """Strided convolutions both ways, encode gives (mu, logvar)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()
        )
        self.mu, self.logvar = nn.Linear(128, CODE), nn.Linear(128, CODE)
        self.up = nn.Linear(CODE, 128)
        self.deconv = nn.Sequential(
            nn.ConvTranspose2d(32, 16, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, 2, 1),
            nn.Sigmoid(),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.conv(x).flatten(1)
        return self.mu(h), self.logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        return self.deconv(F.relu(self.up(z)).view(-1, 32, 2, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encode(x)
        return self.decode(sampled(mean, log_var)), mean, log_var


class Lists(nn.Module):
    """Lists as outputs, batch norm and leaky ReLU, the input among the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 96), nn.BatchNorm1d(96), nn.LeakyReLU()
        )
        self.fc_mu, self.fc_var = nn.Linear(96, CODE), nn.Linear(96, CODE)
        self.decoder = nn.Sequential(
            nn.Linear(CODE, 96), nn.BatchNorm1d(96), nn.LeakyReLU(), nn.Linear(96, 64), nn.Sigmoid()
        )

    def encode(self, x: Tensor) -> list[Tensor]:
        h = self.encoder(x)
        return [self.fc_mu(h), self.fc_var(h)]

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z).view(-1, 1, 8, 8)

    def forward(self, x: Tensor) -> list[Tensor]:
        mean, log_var = self.encode(x)
        return [self.decode(sampled(mean, log_var)), x, mean, log_var]


class Outputs(dict[str, Any]):
    """Entries that are attributes too."""

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None


class Benchmark(nn.Module):
    """Encoder and decoder that return named outputs, as benchmark libraries have them."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = dense(64, 96, 96)
            self.embedding, self.log_var = nn.Linear(96, CODE), nn.Linear(96, CODE)

        def forward(self, x: Tensor) -> Outputs:
            h = F.relu(self.layers(x.reshape(len(x), -1)))
            return Outputs(embedding=self.embedding(h), log_covariance=self.log_var(h))

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = dense(CODE, 96, 64, last=nn.Sigmoid())

        def forward(self, z: Tensor) -> Outputs:
            return Outputs(reconstruction=self.layers(z).reshape(-1, 1, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Benchmark.Encoder(), Benchmark.Decoder()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = self.encoder(x)
        mean, log_var = out.embedding, out.log_covariance
        return self.decoder(sampled(mean, log_var)).reconstruction, mean, log_var


class Deterministic(nn.Module):
    """An encoder and a decoder, codes without a spread."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), dense(64, 96, CODE))
        self.decoder = nn.Sequential(dense(CODE, 96, 64, last=nn.Sigmoid()))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x)).view_as(x)


class Quantized(nn.Module):
    """A codebook between encoder and decoder: nearest entries, straight-through gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 4, 1))
        self.codebook = nn.Embedding(64, 4)
        self.decoder = nn.Sequential(
            nn.Conv2d(4, 32, 3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 4, 2, 1),
            nn.Sigmoid(),
        )

    loss: Tensor

    def quantize(self, z: Tensor) -> Tensor:
        rows = z.permute(0, 2, 3, 1)
        gaps = (rows.unsqueeze(-2) - self.codebook.weight).square().sum(-1)
        return self.codebook(gaps.argmin(-1)).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        entry = self.quantize(z)
        self.loss = (z.detach() - entry).square().sum() + 0.25 * (z - entry.detach()).square().sum()
        return self.decoder(z + (entry - z).detach())


class Diffusion(nn.Module):
    """Latent-diffusion calls: encode().latent_dist, decode().sample, images in [-1, 1]."""

    class Posterior:
        def __init__(self, moments: Tensor) -> None:
            self.mean, log_var = moments.chunk(2, 1)
            self.logvar = log_var.clamp(-30.0, 20.0)
            self.std = torch.exp(0.5 * self.logvar)

        def sample(self) -> Tensor:
            return self.mean + self.std * torch.randn_like(self.mean)

        def mode(self) -> Tensor:
            return self.mean

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 4, 4, 2, 1)
        )
        self.quant_conv, self.post_quant_conv = nn.Conv2d(4, 4, 1), nn.Conv2d(2, 16, 1)
        self.decoder = nn.Sequential(
            nn.SiLU(),
            nn.ConvTranspose2d(16, 16, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(16, 1, 3, padding=1),
        )

    def encode(self, x: Tensor) -> Any:
        return SimpleNamespace(latent_dist=Diffusion.Posterior(self.quant_conv(self.encoder(x))))

    def decode(self, z: Tensor) -> Any:
        return SimpleNamespace(sample=self.decoder(self.post_quant_conv(z)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.encode(2 * x - 1).latent_dist
        return (self.decode(q.sample()).sample + 1) / 2, q.mean, q.logvar


class Denoiser(nn.Module):
    """Layers called inline, no part of which decodes: judged by its output only."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 96), nn.Linear(96, CODE), nn.Linear(CODE, 96)])
        self.last = nn.Linear(96, 64)

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(1)
        for layer in self.layers:
            h = torch.tanh(layer(h))
        return torch.sigmoid(self.last(h)).view_as(x)


class Logits(nn.Module):
    """One tensor cut in two by encode, logits out of decode."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), dense(64, 96, 2 * CODE))
        self.decoder = dense(CODE, 96, 64)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.encoder(x).chunk(2, 1)
        return mean, log_var

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z).view(-1, 1, 8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encode(x)
        return torch.sigmoid(self.decode(sampled(mean, log_var))), mean, log_var


class Probabilistic(nn.Module):
    """Calls that return torch's own distributions, as in probabilistic programs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.loc = nn.Sequential(nn.Flatten(), dense(64, 96, 96)), nn.Linear(96, CODE)
        self.scale, self.net = nn.Linear(96, CODE), dense(CODE, 96, 64, last=nn.Sigmoid())

    def encode(self, x: Tensor) -> torch.distributions.Normal:
        h = F.relu(self.body(x))
        return torch.distributions.Normal(self.loc(h), F.softplus(self.scale(h)) + 1e-4)

    def decode(self, z: Tensor) -> torch.distributions.Normal:
        return torch.distributions.Normal(self.net(z).view(-1, 1, 8, 8), 0.2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.encode(x)
        return self.decode(q.rsample()).mean, q.mean, 2 * q.stddev.log()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tutorial, rows of pixels": Tutorial,
    "convolutional": Convolutional,
    "lists": Lists,
    "benchmark library": Benchmark,
    "deterministic": Deterministic,
    "vector-quantized": Quantized,
    "latent diffusion": Diffusion,
    "denoiser, output only": Denoiser,
    "logits": Logits,
    "probabilistic program": Probabilistic,
}

EXTRA: dict[str, dict[str, Any]] = {
    "latent diffusion": {"pixels": (-1, 1)},
    "denoiser, output only": {"output_only": True},
    "logits": {"likelihood": "bernoulli", "outputs": "logits"},
    "vector-quantized": {"output_only": True},
}
"""What `rv.wrap(model, image_shape=(1, 8, 8), ...)` is told beside the shape."""

KL_WEIGHT = {"latent diffusion": 1e-2}
"""Public encoders of latent diffusion weigh the KL next to nothing; all others by 1."""


def trained(name: str, x: Tensor, epochs: int, generator: torch.Generator) -> nn.Module:
    """A model after some epochs on images, by its own loss: squared error, and KL where it has one.

    Args:
        name: One of `MODELS`.
        x: Images, (N, 1, 8, 8).
        epochs: Passes.
        generator: Of which the seed of torch's global generator is drawn, which this code uses.
    """
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        model = MODELS[name]().train()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(64):
                batch = x[rows]
                output = model(batch)
                result = output if isinstance(output, Tensor) else output[0]
                # the Gaussian likelihood's scale of 0.2 weighs error against KL
                loss = (result.reshape(len(batch), -1) - batch.flatten(1)).square().sum() / 0.08
                if not isinstance(output, Tensor):
                    weight = KL_WEIGHT.get(name, 1.0)
                    loss = loss + weight * divergence(output[-2], output[-1]).sum()
                if isinstance(model, Quantized):
                    loss = loss + 10 * model.loss
                optimizer.zero_grad()
                (loss / len(batch)).backward()
                optimizer.step()
    return model.eval()

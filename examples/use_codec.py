"""A small learned codec with the interface of CompressAI, and what an attacker can make it cost."""

import torch
from torch import nn

import robustvae as rv


class Entropy(nn.Module):
    """A logistic distribution for every channel; noise in training, rounding otherwise."""

    def __init__(self, channels):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def quantize(self, y):
        return y + torch.rand_like(y) - 0.5 if self.training else y.round()

    def forward(self, y):
        y_hat = self.quantize(y)
        scale = self.log_scale.exp()
        upper, lower = torch.sigmoid((y_hat + 0.5) / scale), torch.sigmoid((y_hat - 0.5) / scale)
        return y_hat, (upper - lower).clamp_min(1e-9)


class SmallCodec(nn.Module):
    """Analysis, entropy model, synthesis."""

    def __init__(self):
        super().__init__()
        self.g_a = nn.Sequential(
            nn.Conv2d(3, 24, 4, 2, 1), nn.SiLU(), nn.Conv2d(24, 24, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(24, 12, 3, 1, 1),
        )  # fmt: skip
        self.g_s = nn.Sequential(
            nn.Conv2d(12, 24, 3, 1, 1), nn.SiLU(), nn.ConvTranspose2d(24, 24, 4, 2, 1), nn.SiLU(),
            nn.ConvTranspose2d(24, 3, 4, 2, 1),
        )  # fmt: skip
        self.entropy_bottleneck = Entropy(12)

    def forward(self, x):
        y_hat, likelihoods = self.entropy_bottleneck(self.g_a(x))
        return {"x_hat": self.g_s(y_hat), "likelihoods": {"y": likelihoods}}


def build(steps=400):
    """The codec, trained briefly: what `robustvae audit use_codec.py:build` loads."""
    x = rv.data.load("drawn-shapes").x
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SmallCodec().train()
        optimizer = torch.optim.Adam(model.parameters(), 4e-3)
        for step in range(steps):
            batch = x[(32 * step) % 1152 :][:32]
            output = model(batch)
            bits = -output["likelihoods"]["y"].log2().sum() / (len(batch) * 32 * 32)
            error = (output["x_hat"] - batch).square().mean()
            optimizer.zero_grad()
            (bits + 400 * error).backward()
            optimizer.step()
    return rv.wrap(model.eval(), image_shape=(3, 32, 32))


if __name__ == "__main__":
    images = rv.data.load("drawn-shapes", split="test")
    profile = "codec:inputs=4,search=(projected-ascent:steps=20,restarts=1)"
    record = rv.audit(build(), images, profile=profile, seed=0)
    for sentence in rv.report.section_of(record).answer:
        print(sentence)

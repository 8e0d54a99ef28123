"""Detectors of malignant cells on a table that comes with scikit-learn, and their audit."""

import numpy as np
import torch
from torch import nn

import robustvae as rv

CODE = 4


class TableVAE(nn.Module):
    """A small VAE of one row of the table."""

    def __init__(self, features):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(features, 64), nn.ELU(), nn.Linear(64, 2 * CODE))
        self.decoder = nn.Sequential(nn.Linear(CODE, 64), nn.ELU(), nn.Linear(64, features))

    def encode(self, x):
        return self.encoder(x).chunk(2, dim=1)

    def decode(self, z):
        return self.decoder(z)


def normal_rows(table="breast-cancer"):
    images = rv.data.load(table, split="train")
    return images.x[images.y == 0].flatten(1)


def trained(model, loss, x):
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(300):
        optimizer.zero_grad()
        loss(model, x).backward()
        optimizer.step()
    return model.eval()


def build_vae(table="breast-cancer"):
    """A VAE trained on benign cells alone: `robustvae audit use_anomaly.py:build_vae` loads it."""

    def loss(model, x):
        mean, log_var = model.encode(x)
        z = mean + (log_var / 2).exp() * torch.randn_like(mean)
        kl = (mean.square() + log_var.exp() - 1 - log_var).sum(1) / 2
        return ((model.decode(z) - x).square().sum(1) / 0.02 + kl).mean()

    rows = normal_rows(table)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return rv.wrap(trained(TableVAE(rows.shape[1]), loss, rows), image_shape=rows.shape[1:])


def build_autoencoder(table="breast-cancer"):
    """A plain autoencoder: codes without a spread."""
    rows = normal_rows(table)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        width = rows.shape[1]
        layers = nn.Linear(width, 32), nn.ELU(), nn.Linear(32, CODE), nn.Linear(CODE, width)
        loss = lambda m, x: (m(x) - x).square().sum(1).mean()  # noqa: E731
        model = trained(nn.Sequential(*layers), loss, rows)
    return rv.wrap(model, image_shape=rows.shape[1:])


def build_wine_vae():
    """A VAE of the wines of the first grower."""
    return build_vae("wine")


def build_wine_autoencoder():
    """A plain autoencoder of them."""
    return build_autoencoder("wine")


class Distance:
    """A detector with pyod's interface, which gives a score and nothing else."""

    def fit(self, rows):
        self.mean, self.precision = rows.mean(0), np.linalg.pinv(np.cov(rows.T))
        return self

    def decision_function(self, rows):
        gap = rows - self.mean
        return np.sqrt(((gap @ self.precision) * gap).sum(1))


def build_detector():
    """The detector, fitted on benign cells."""
    return rv.wrap(Distance().fit(normal_rows().numpy()), image_shape=(30,))


if __name__ == "__main__":
    images = rv.data.load("breast-cancer", split="test")
    # an attacker who cannot forge the first ten features, the means
    profile = "anomaly:inputs=30,draws=500,balls=[(norm=linf,radius=0.05),(norm=l2,radius=0.2)]"
    vae = build_vae()
    victims = {"as it is": rv.Victim(vae), "under noise": rv.Victim(vae, "input-noise:stddev=0.1")}
    record = rv.audit(victims, images, profile=profile, seed=0)
    print(record.use.facts["threshold of as it is"])
    for sentence in rv.report.section_of(record).answer:
        print(sentence)

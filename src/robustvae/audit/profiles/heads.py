"""Linear heads on codes: trained by Newton-like steps, stored without pickling."""

from __future__ import annotations

from pathlib import Path
from typing import final

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustvae.errors import CheckpointError, ShapeError
from robustvae.records import write_bytes


@final
class LinearHead(nn.Module):
    """A linear classifier of standardized codes.

    Args:
        mean: Mean code, (d,).
        spread: Standard deviation of each coordinate, (d,), positive.
        weight: (K, d).
        bias: (K,).

    Examples:
        >>> import torch
        >>> from robustvae.audit.profiles.heads import LinearHead
        >>> codes = torch.tensor([[0.0], [0.1], [1.0], [1.1]])
        >>> head = LinearHead.fit(codes, torch.tensor([0, 0, 1, 1]))
        >>> head(codes).argmax(1).tolist()
        [0, 0, 1, 1]
    """

    mean: Tensor
    spread: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, mean: Tensor, spread: Tensor, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("spread", spread), ("weight", weight), ("bias", bias)):
            self.register_buffer(name, value)

    @classmethod
    def fit(cls, codes: Tensor, labels: Tensor, decay: float = 1e-3) -> LinearHead:
        """The head of least cross-entropy with a squared penalty on its weights; no randomness.

        Args:
            codes: (N, d).
            labels: Whole numbers from 0, (N,).
            decay: Of the penalty.
        """
        dtype, device = codes.dtype, codes.device
        codes = codes.detach().double()
        mean = codes.mean(0)
        spread = codes.std(0).clamp_min(1e-3 * float(codes.std(0).max().clamp_min(1e-6)))
        z = (codes - mean) / spread
        classes = int(labels.max()) + 1
        with torch.enable_grad():
            weight = torch.zeros(classes, z.shape[1], dtype=z.dtype, device=device)
            weight.requires_grad_()
            bias = torch.zeros(classes, dtype=z.dtype, device=device, requires_grad=True)
            optimizer = torch.optim.LBFGS(
                [weight, bias], max_iter=100, line_search_fn="strong_wolfe"
            )

            def loss() -> Tensor:
                optimizer.zero_grad()
                value = functional.cross_entropy(z @ weight.mT + bias, labels.to(device))
                value = value + decay * weight.square().sum()
                value.backward()
                return value

            optimizer.step(loss)
        parts = (mean, spread, weight.detach(), bias.detach())
        return cls(*(part.to(dtype) for part in parts))

    def forward(self, z: Tensor) -> Tensor:
        """Logits of codes (B, d), (B, K)."""
        logits: Tensor = ((z - self.mean) / self.spread) @ self.weight.mT + self.bias
        return logits


def save_head(head: LinearHead, path: str | Path) -> None:
    """Write a head as safetensors."""
    content = {key: value.contiguous() for key, value in head.state_dict().items()}
    write_bytes(Path(path), safetensors.torch.save(content))


def load_head(path: str | Path, width: int) -> LinearHead:
    """The head that a safetensors file holds.

    Raises:
        CheckpointError: No head in it.
        ShapeError: A head of codes of another width.
    """
    try:
        parts = safetensors.torch.load(Path(path).read_bytes())
        head = LinearHead(*(parts[key] for key in ("mean", "spread", "weight", "bias")))
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} holds no head: {error}; train one anew") from None
    if len(head.mean) != width:
        raise ShapeError(
            f"the head in {path} reads codes of {len(head.mean)} numbers, the model's have "
            f"{width}: train one for this model"
        )
    return head

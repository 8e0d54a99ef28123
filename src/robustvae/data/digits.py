"""The 8x8 handwritten digits that come with scikit-learn."""

from __future__ import annotations

import torch

from robustvae.data.images import Images, rank_in_class

TEST_EVERY = 5


def load(split: str) -> Images:
    """1,797 digits of 13 writers [Alpaydin & Kaynak, 1998], 1x8x8, pixels / 16.

    The split is fixed and stratified: of each class, every fifth image in the order of the file
    is for testing (355), the others for training (1,442).

    Args:
        split: "train" or "test".

    Returns:
        Images in [0, 1], (N, 1, 8, 8), labels 0 to 9.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels, dtype=torch.int64)
    rank, _ = rank_in_class(y)
    for_testing = rank % TEST_EVERY == TEST_EVERY - 1
    mask = for_testing if split == "test" else ~for_testing
    return Images(x[mask], y[mask], name="digits", split=split)

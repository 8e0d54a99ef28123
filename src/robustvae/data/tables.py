"""Tables that come with scikit-learn, each row an input of shape (1, 1, F) in [0, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from robustvae.data.images import Images, rank_in_class

TEST_EVERY = 3


def breast_cancer(split: str) -> Images:
    """569 measurements of cell nuclei [Wolberg et al., 1995], 30 features; benign and malignant.

    Args:
        split: "train" or "test"; see `table`.
    """
    from sklearn.datasets import load_breast_cancer

    values, labels = load_breast_cancer(return_X_y=True)
    # scikit-learn counts malignant as 0; here the normal class comes first
    return table(values, 1 - labels, ("benign", "malignant"), "breast-cancer", split)


def wine(split: str) -> Images:
    """178 chemical analyses of wines [Aeberhard & Forina, 1992], 13 features; three growers.

    Args:
        split: "train" or "test"; see `table`.
    """
    from sklearn.datasets import load_wine

    values, labels = load_wine(return_X_y=True)
    return table(values, labels, ("grower 1", "grower 2", "grower 3"), "wine", split)


def table(values: Any, labels: Any, classes: tuple[str, ...], name: str, split: str) -> Images:
    """A table as inputs in [0, 1]: features scaled by their range in the training part, clipped.

    Args:
        values: (N, F).
        labels: Whole numbers, (N,).
        classes: Names of the labels.
        name: Of the set.
        split: "test" is every third row of each class in the order of the file, "train" the others.

    Examples:
        >>> import robustvae as rv
        >>> images = rv.data.load("wine", split="test")
        >>> images.shape, images.class_name(1)
        ((58, 1, 1, 13), 'grower 2')
    """
    y = torch.tensor(np.asarray(labels), dtype=torch.int64)
    rank, _ = rank_in_class(y)
    for_testing = rank % TEST_EVERY == TEST_EVERY - 1
    x = torch.tensor(np.asarray(values), dtype=torch.float64)
    low, high = x[~for_testing].amin(0), x[~for_testing].amax(0)
    x = ((x - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).float()
    mask = for_testing if split == "test" else ~for_testing
    return Images(x[mask].reshape(-1, 1, 1, x.shape[1]), y[mask], name, split).with_classes(classes)

"""Images in [0, 1] with their labels: bundled digits, MNIST, Fashion-MNIST."""

from robustvae.data.images import Images
from robustvae.data.sets import load, names

__all__ = ["Images", "load", "names"]

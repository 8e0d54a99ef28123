"""Images in [0, 1] with their labels: bundled, drawn, read from files, or your own."""

from robustvae.data.changes import Binarized, Blurred, Compressed, Noisy
from robustvae.data.coercion import as_images, from_tensor
from robustvae.data.dataset import from_dataset
from robustvae.data.folder import read_folder
from robustvae.data.images import Change, Images, Source
from robustvae.data.joining import joined
from robustvae.data.sets import load, names
from robustvae.data.space import InputSpace

__all__ = [
    "as_images",
    "Binarized",
    "Blurred",
    "Change",
    "Compressed",
    "from_dataset",
    "from_tensor",
    "Images",
    "InputSpace",
    "joined",
    "load",
    "names",
    "Noisy",
    "read_folder",
    "Source",
]

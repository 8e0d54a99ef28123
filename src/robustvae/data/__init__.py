"""Images in [0, 1] with their labels: bundled, drawn, read from files, or your own."""

from robustvae.data.changes import Binarized, Blurred, Compressed, Noisy
from robustvae.data.dataset import from_dataset
from robustvae.data.folder import read_folder
from robustvae.data.images import Change, Images, Source
from robustvae.data.sets import load, names

__all__ = [
    "Binarized",
    "Blurred",
    "Change",
    "Compressed",
    "from_dataset",
    "Images",
    "load",
    "names",
    "Noisy",
    "read_folder",
    "Source",
]

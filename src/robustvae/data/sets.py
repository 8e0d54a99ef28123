"""Data sets by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustvae import registry
from robustvae.arguments import checked
from robustvae.data import (
    celeba,
    cifar10,
    color_mnist,
    digits,
    drawn_shapes,
    drawn_signals,
    dsprites,
    tables,
)
from robustvae.data.changes import Binarized, Blurred, Compressed, Noisy
from robustvae.data.fashion_mnist import FASHION_MNIST
from robustvae.data.folder import read_folder
from robustvae.data.idx import IdxSet
from robustvae.data.images import Change, Images
from robustvae.data.mnist import MNIST
from robustvae.errors import (
    DataError,
    DtypeError,
    RobustVAEError,
    check_choice,
    check_type,
    single_line,
    unknown,
)
from robustvae.registry import register

ON_DISK: dict[str, IdxSet] = {member.name: member for member in (FASHION_MNIST, MNIST)}
FOLDER = "folder"
CHANGES: dict[str, tuple[type | None, Callable[..., Change]]] = {
    "blur": (float, Blurred),
    "dynamic": (None, lambda: Binarized(dynamic=True)),
    "jpeg": (int, Compressed),
    "noise": (float, Noisy),
    "static": (None, Binarized),
}
FITS = ("channels", "crop", "size")
LABEL = "label"
SPLITS = ("train", "test")


@register("data", "breast-cancer")
def load_breast_cancer(split: str, root: Path, download: bool) -> Images:
    """Measurements of cell nuclei that come with scikit-learn: benign, malignant; 30 features."""
    return tables.breast_cancer(split)


@register("data", "celeba")
def load_celeba(split: str, root: Path, download: bool) -> Images:
    """CelebA faces in color, from files on disk."""
    return celeba.load(split, root)


@register("data", "cifar10")
def load_cifar10(split: str, root: Path, download: bool) -> Images:
    """CIFAR-10, whichever of its two forms is on disk."""
    return cifar10.load(split, root, download)


@register("data", "cifar10_jpeg")
def load_cifar10_jpeg(split: str, root: Path, download: bool) -> Images:
    """A subset of CIFAR-10 that was compressed as JPEG."""
    return cifar10.load_jpeg(split, root)


@register("data", "color_mnist")
def load_color_mnist(split: str, root: Path, download: bool) -> Images:
    """MNIST in the seven colors of the RGB cube that are not black."""
    return color_mnist.load(split, root, download)


@register("data", "digits")
def load_digits(split: str, root: Path, download: bool) -> Images:
    """Handwritten digits of 8 x 8 pixels that come with scikit-learn."""
    return digits.load(split)


@register("data", "drawn-shapes")
def load_drawn_shapes(split: str, root: Path, download: bool) -> Images:
    """Colored shapes of 32 x 32 pixels, drawn from a fixed seed."""
    return drawn_shapes.load(split)


@register("data", "drawn-signals")
def load_drawn_signals(split: str, root: Path, download: bool) -> Images:
    """Signals of two channels and 128 values, normal ones and four faults, from a fixed seed."""
    return drawn_signals.load(split)


@register("data", "dsprites")
def load_dsprites(split: str, root: Path, download: bool) -> Images:
    """Shapes drawn from known factors, made as they are read."""
    return dsprites.load(split)


@register("data", "fashion_mnist")
def load_fashion_mnist(split: str, root: Path, download: bool) -> Images:
    """Garments of 28 x 28 pixels."""
    return ON_DISK["fashion_mnist"].load(split, root, download)


@register("data", "mnist")
def load_mnist(split: str, root: Path, download: bool) -> Images:
    """Handwritten digits of 28 x 28 pixels."""
    return ON_DISK["mnist"].load(split, root, download)


@register("data", "wine")
def load_wine(split: str, root: Path, download: bool) -> Images:
    """Chemical analyses of wines that come with scikit-learn, three growers, 13 features."""
    return tables.wine(split)


def names() -> list[str]:
    """Names that `load` knows, sorted; besides them it reads "folder:PATH".

    Examples:
        >>> import robustvae as rv
        >>> "digits" in rv.data.names()
        True
    """
    return registry.names("data")


@checked()
def load(
    name: str, split: str = "train", root: str | Path | None = None, download: bool = False
) -> Images:
    """A data set by name; the large ones are read as they are asked for, not all at once.

    "digits", "breast-cancer" and "wine" come with the installation, "dsprites", "drawn-shapes" and
    "drawn-signals" are drawn. The others are read from the
    folder `root`, else from the one that the environment variable ROBUSTVAE_DATA names, else from
    ~/.cache/robustvae, in torchvision's layout: MNIST/raw and FashionMNIST/raw (IDX files, raw or
    .gz), cifar-10-batches-py, celeba. "color_mnist" is made of MNIST, "cifar10_jpeg" is read from
    cifar10/train.npz and test.npz, and "cifar10" is whichever of the two is there.

    "folder:PATH" reads images of your own as `read_folder` does, and "folder" those in `root`.

    A name may go on with changes, made from left to right: "+static" and "+dynamic" (binarized),
    "+noise:0.1", "+blur:1", "+jpeg:25"; for folders "+crop:148", "+size:64", "+channels:1". With
    "+label:color" the labels of color_mnist are its colors; see `Images.labeled_by`.

    Args:
        name: One of `names()`, or a folder, and changes.
        split: "train" or "test".
        root: Folder that holds the sets, or None to look in the places above.
        download: Fetch missing files from where they are published, checked by their MD5 sums.

    Returns:
        Images in [0, 1], float32, under the name that finds them again.

    Raises:
        UnknownNameError: Unknown name, split or change.
        DataError: Missing, truncated, or not what it claims to be.
        DtypeError: A change with another number than it takes.
        RangeError: A change out of range.
        StorageError: A download could not be written.

    Examples:
        >>> import robustvae as rv
        >>> rv.data.load("digits").x.shape
        torch.Size([1442, 1, 8, 8])
        >>> rv.data.load("digits+blur:0.5+jpeg:60", split="test").name
        'digits+blur:0.5+jpeg:60'
    """
    if not isinstance(name, str):
        raise unknown("data set", name, names())
    base, changes = _taken_apart(name)
    check_choice("split", split, SPLITS)
    if base == FOLDER or base.startswith(f"{FOLDER}:"):
        images = _folder(base.partition(":")[2], split, root, changes)
    else:
        images = _named(base, split, data_root(root), download)
    for word, value in changes:
        if word == LABEL:
            images = images.labeled_by(value).named(f"{images.name}+{LABEL}:{value}")
            continue
        check_choice(f"change of {base!r}", word, (*CHANGES, LABEL))
        kind, change = CHANGES[word]
        if kind is None and value:
            raise DtypeError(f"change {word!r} takes no number, got {value!r}")
        arguments = () if kind is None or not value else (_number(word, value, kind),)
        images = images.changed(change(*arguments))
    return images


def data_root(root: str | Path | None = None) -> Path:
    """The folder that holds the data sets: `root`, else ROBUSTVAE_DATA, else the user's cache."""
    path = root or os.environ.get("ROBUSTVAE_DATA") or "~/.cache/robustvae"
    return Path(path).expanduser()


def _taken_apart(name: str) -> tuple[str, list[tuple[str, str]]]:
    """The base of a name, and its changes as (word, number); the + of a path stays in the path."""
    base, *parts = name.split("+")
    pairs = [(word, value) for word, _, value in (part.partition(":") for part in parts)]
    if base.startswith(f"{FOLDER}:"):
        is_known = [word in (*CHANGES, *FITS, LABEL) for word, _ in pairs]
        first = len(is_known) - is_known[::-1].index(False) if False in is_known else 0
        base, pairs = "+".join([base, *parts[:first]]), pairs[first:]
    return base, pairs


def _named(name: str, split: str, root: Path, download: bool) -> Images:
    """What a registered function, or one of a user's module, returns."""
    member = registry.lookup("data", name)
    try:
        images = member(split, root, download)
    except (Exception, SystemExit) as error:  # somebody else's code: anything may come out of it
        is_ours = getattr(member, "__module__", "").partition(".")[0] == "robustvae"
        if is_ours or isinstance(error, RobustVAEError):
            raise
        raise DataError(
            f"the data set {name!r} raised {type(error).__name__}: {single_line(error, 160)}; it "
            "must be a function of split, root and download that returns rv.data.Images"
        ) from None
    check_type(images, f"what the data set {name!r} returns", Images)
    return images


def _folder(
    path: str, split: str, root: str | Path | None, changes: list[tuple[str, str]]
) -> Images:
    if not path and root is None:
        raise DataError("the data set folder needs a path: write folder:PATH, or give root=")
    fit: dict[str, Any] = {}
    for word, value in [pair for pair in changes if pair[0] in FITS]:
        fit[word] = _number(word, value, int)
        changes.remove((word, value))
    return read_folder(path or str(root), split, **fit)


def _number(word: str, value: str, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError:
        kind_name = "a whole number" if kind is int else "a number"
        raise DtypeError(f"{word!r} takes {kind_name} after the colon, got {value!r}") from None

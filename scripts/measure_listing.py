"""Measure what a folder of many image files, or an array on disk, takes of time and memory.

    python scripts/measure_listing.py --files 1000000
    python scripts/measure_listing.py --array 1000000  # an npy file of as many images

Makes a folder with one image and links to it, all under names of their own, in 100 folders of
classes; then, in a process of its own, reads the folder, takes 1,000 images of it and chooses 100.
Every tenth file is for testing, so a tenth is there less. Peak memory is beside that of the
library alone. The array has images of 64 x 64 bytes in a sparse file, which takes no room on the
disk: beside an array of 100 images it shows what an audit and a training hold of it.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLASSES = 100


def fill(top: Path, count: int) -> None:
    """Hard links to one image, in folders of classes; a file system may bear few links of one."""
    from PIL import Image

    for label in range(CLASSES):
        folder = top / f"class-{label:03d}"
        folder.mkdir()
        first = folder / "image-0000000.png"
        Image.new("L", (8, 8), label).save(first)
        for number in range(1, count // CLASSES):
            os.link(first, folder / f"image-{number:07d}.png")


def peak() -> float:
    """The most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(top: str) -> None:
    """List, read and choose."""
    import torch

    import robustvae as rv

    rv.data.load("digits", split="test")  # imports what loading imports
    before, begin, cpu = peak(), time.monotonic(), time.process_time()
    images = rv.data.read_folder(top)
    wall, spent = time.monotonic() - begin, time.process_time() - cpu
    print(
        f"{len(images)} images listed: {wall:.1f} s, {spent:.1f} CPU s, "
        f"{peak() - before:.0f} MB above {before:.0f}",
        flush=True,
    )
    begin = time.process_time()
    for rows in torch.arange(0, len(images), max(1, len(images) // 1000))[:1000].split(100):
        images.read(rows)
    images.choose(100, stratified=True, generator=rv.generator(0))
    spent = time.process_time() - begin
    print(
        f"1,000 read and 100 chosen: {spent:.1f} CPU s, {peak() - before:.0f} MB above", flush=True
    )


def measure_array(count: int) -> None:
    """Audit 8 inputs of an array on disk and train on 2,000 of it, for the most memory held."""
    import numpy as np
    import torch

    import robustvae as rv
    from robustvae.audit import Run

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "images.npy"
        array = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 64, 64))
        array[:: max(1, count // 100)] = 200
        del array
        images, begin = rv.data.as_images(path), time.process_time()
        vae = rv.models.create("vae", architecture="mlp", image_shape=(1, 64, 64), latent=4)
        every = torch.arange(0, count, max(1, count // 2000))
        generator = rv.generator(0)
        rv.fit(vae, rv.objectives.ELBO(), images[every], epochs=1, generator=generator)
        run = Run(progress=lambda *_: None, announce=lambda _: None)
        rv.audit(vae, images, plan="smoke", question={"r": 1.0}, run=run)
        spent = time.process_time() - begin
        size = path.stat().st_size / 2**20
        print(f"{count} images of {size:.0f} MB: {spent:.1f} CPU s, {peak():.0f} MB at most")


def main() -> None:
    """Fill a folder and measure in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--folder", help="measure this one (used by the command itself)")
    parser.add_argument("--array", type=int, help="measure an array of so many images instead")
    options = parser.parse_args()
    if options.array:
        measure_array(options.array)
        return
    if options.folder:
        measure(options.folder)
        return
    with tempfile.TemporaryDirectory() as place:
        fill(Path(place), options.files)
        subprocess.run([sys.executable, __file__, "--folder", place], check=True)


if __name__ == "__main__":
    main()

"""Images per second that one core can decode and augment for training on ImageNet.

Question: how many images does one core prepare, with and without a cache, and so how many cores does a GPU need?
Not measured: reading from a disk that is slower than memory, the network, copies to a GPU.
Run: python -m benchmarks.bench_input --path FOLDER

FOLDER is what the data module `ImageNet` reads: Parquet files or folders of images. The first images of the training
part are taken, once each in a round, in this process and with one thread; they are in memory after the first round, and
the cache is in a temporary folder. Times are those of the processor, which other programs change less than those of a
clock. Sizes are those of ImageNet: training crops of 224, evaluation of 224 after 256, a cache of shorter sides of 256
and of 160.

The records say how large the images are, because that decides: those of ImageNet have 500x375 pixels on average, and
take about 110 kB.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import PIL
import torch

from benchmarks.bars import last_runs
from benchmarks.harness import Case, measure
from benchmarks.program import records, report
from benchmarks.records import Record, append, results_path
from recipes.data.encoded import OpenedImage
from recipes.data.imagenet import ImageNet
from recipes.data.loader import Fetch
from recipes.data.module import Split
from recipes.environment import environment

NAME = "bench_input"
REFERENCE = "training"
CACHE_SIZES = (256, 160)
CPU = torch.device("cpu")
NOT_MEASURED = "No records yet. Measure: `python -m benchmarks.bench_input --path FOLDER`."


def run(path: str, images: int, repeats: int) -> Iterator[list[Record]]:
    """Measure every way to prepare the same images."""
    with tempfile.TemporaryDirectory() as folder:
        plain = ready(path)
        chosen = list(range(min(images, plain.samples("train"))))
        cases = {REFERENCE: prepare(plain, "train", chosen), "evaluation": prepare(plain, "validation", chosen)}
        for size in CACHE_SIZES:
            cached = ready(path, cache=f"{folder}/{size}", cache_size=size)
            cases[f"training, cached at {size}"] = prepare(cached, "train", chosen)
            if size == cached.resize_size:
                cases[f"evaluation, cached at {size}"] = prepare(cached, "validation", chosen)
        cases["decoding alone"] = partial(decode, plain, chosen)
        measured = measure(cases, CPU, repeats, clock=time.process_time)
        yield records(measured.items(), {"images": len(chosen), **sizes(plain, chosen)}, REFERENCE)


def ready(path: str, **options: object) -> ImageNet:
    """Open the training images, which serve for evaluation too."""
    data = ImageNet(path, workers=0, **options)  # type: ignore[arg-type]  # names and types are those above
    data.trainer = SimpleNamespace(limit_val_batches=0)  # type: ignore[assignment]  # all that `setup` asks it
    data.setup("fit")
    data._sources["validation"] = data._sources["train"]
    return data


def prepare(data: ImageNet, split: Split, chosen: list[int]) -> Case:
    """Return a call that makes a batch of images, augmented differently in each."""
    fetch, epochs = data.fetch(split), iter(range(10**9))
    return lambda: take(fetch, next(epochs), chosen)


def take(fetch: Fetch, epoch: int, chosen: list[int], batch_size: int = 32) -> None:
    """Load images in batches."""
    for start in range(0, len(chosen), batch_size):
        fetch(epoch, chosen[start : start + batch_size])


def decode(data: ImageNet, chosen: list[int]) -> None:
    """Decode images at their full size and do nothing else."""
    source = data._sources["train"]
    for key in chosen:
        OpenedImage(source.read(key)).pixels()


def sizes(data: ImageNet, chosen: list[int]) -> Mapping[str, int]:
    """Mean size of the images in pixels and in bytes."""
    encoded = [data._sources["train"].read(key) for key in chosen]
    contents = [
        image.image if isinstance(image.image, bytes) else Path(str(image.image)).read_bytes() for image in encoded
    ]
    across, down = zip(*(OpenedImage(image).size for image in encoded), strict=True)
    return {"width": round(fmean(across)), "height": round(fmean(down)), "bytes": round(fmean(map(len, contents)))}


def input_table(lines: Sequence[Record]) -> str:
    """Images per second of each way to prepare them, in the last run."""
    if not lines:
        return NOT_MEASURED
    latest = last_runs(lines)
    parameters = latest[0]["parameters"]
    rows = ["| images | images per second and core | ms for each |", "| --- | ---: | ---: |"]
    for record in latest:
        low, median, high = (record["seconds"][index] / parameters["images"] for index in range(3))
        rows.append(f"| {record['case']} | {1 / median:.0f} ({1 / high:.0f}-{1 / low:.0f}) | {median * 1000:.2f} |")
    first = latest[0]
    note = (
        f"{parameters['images']} images of {parameters['width']}x{parameters['height']} pixels and "
        f"{parameters['bytes'] / 1000:.0f} kB on average; time of the processor, median and quartiles of {first['n']} "
        f"rounds. Device: {first['device']}, one core; torch {first['torch']}, Pillow {first['pillow']}. "
        "Repeat: `python -m benchmarks.bench_input --path FOLDER`."
    )
    return "\n".join([*rows, "", note])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and append the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, help="folder of images, as `ImageNet` reads it")
    parser.add_argument("--images", type=int, default=256, help="how many are taken; default 256")
    parser.add_argument("--repeats", type=int, default=10, help="rounds; default 10")
    parser.add_argument("--output", type=Path, help="file of records; default: in results/")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    described = {"bench": NAME, "run": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **environment(CPU)}
    described["pillow"] = PIL.__version__
    for group in run(given.path, given.images, given.repeats):
        report(group)
        for record in group:
            append(given.output or results_path(NAME, CPU), record | described)


if __name__ == "__main__":
    main()

import json
import pickle
import time

import numpy as np
import pytest
from PIL import Image

from recipes.data import image_cache
from recipes.data.encoded import Encoded, OpenedImage, UnreadableImage
from recipes.data.image_cache import CachedImages, CacheFiles, ensure_cache
from recipes.data.image_source import IndexedSource
from tests.recipes.pictures import encoded, noise, truncated

SIZES = [(40, 30), (30, 40), (16, 16), (9, 20)]
SETTINGS = {"hub": "somewhere", "cache_size": 16}


class Pictures(IndexedSource):
    """Noise of several sizes, and as many truncated images as asked for; counts how often it is read."""

    names = ("ant", "bee")

    def __init__(self, broken=0):
        self.contents = [encoded(noise(*size, seed)) for seed, size in enumerate(SIZES)]
        self.contents[1:1] = [truncated()] * broken

    def __len__(self):
        return len(self.contents)

    def read(self, key):
        return Encoded(key, self.contents[key], key % 2, f"image {key}")


def make(folder, source=None, settings=SETTINGS, corrupt="raise", workers=0, size=16):
    images = Pictures() if source is None else source
    ensure_cache(folder, "train", settings, lambda: images, size=size, workers=workers, corrupt=corrupt)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


@pytest.mark.parametrize("workers", [0, 2])
def test_cached_images_are_the_reduced_ones(tmp_path, workers):
    make(tmp_path, workers=workers)
    images = CachedImages(tmp_path, "train")
    assert len(images) == 4 and list(images.names) == ["ant", "bee"]
    reduced = [(21, 16), (16, 21), (16, 16), (16, 35)]  # by hand, rounded down
    for key, (size, seed) in enumerate(zip(reduced, range(4), strict=True)):
        image = images.read(key)
        plain = noise(*SIZES[seed], seed).resize(size, Image.Resampling.BILINEAR)
        assert np.array_equal(image.image, np.asarray(plain))
        assert (image.position, image.label) == (key, key % 2)
        assert np.array_equal(np.asarray(OpenedImage(image).pixels()), np.asarray(plain))
    total = sum(width * height * 3 for width, height in reduced)
    assert (tmp_path / "train.pixels").stat().st_size == total


def test_pixels_are_mapped_and_not_copied(tmp_path):
    make(tmp_path)
    images = CachedImages(tmp_path, "train")
    assert isinstance(images.read(0).image.base, np.memmap)
    copy = pickle.loads(pickle.dumps(images))  # as a worker gets it
    assert len(pickle.dumps(images)) < 2000
    assert np.array_equal(copy.read(3).image, images.read(3).image)


def test_a_cache_with_the_same_settings_is_used_again(tmp_path):
    make(tmp_path)
    before = files(tmp_path)

    def unneeded():
        raise AssertionError("the images were opened again")

    ensure_cache(tmp_path, "train", SETTINGS, unneeded, size=16, workers=0, corrupt="raise")
    assert files(tmp_path) == before


@pytest.mark.parametrize("changed", [{"cache_size": 8}, {"hub": "elsewhere"}], ids=str)
def test_other_settings_make_it_anew(tmp_path, changed):
    make(tmp_path, size=8)
    make(tmp_path, settings=SETTINGS | changed)
    assert CachedImages(tmp_path, "train").read(0).image.shape == (16, 21, 3)
    assert json.loads((tmp_path / "train.json").read_text())["settings"] == SETTINGS | changed


@pytest.mark.parametrize("damage", ["pixels", "index.npy", "json"])
def test_an_incomplete_cache_is_made_anew(tmp_path, damage):
    make(tmp_path)
    before = files(tmp_path)
    path = tmp_path / f"train.{damage}"
    path.unlink() if damage == "json" else path.write_bytes(before[path.name][:-1])
    make(tmp_path)
    assert files(tmp_path) == before


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("again", [False, True], ids=["first", "replacing"])
def test_a_cache_that_was_broken_off_does_not_count(tmp_path, monkeypatch, step, again):
    """Stop before the first file gets its name, before the second, before the third, and in the middle of an image."""
    if again:
        make(tmp_path, settings=SETTINGS | {"hub": "before"}, size=8)
    replace, left = image_cache.os.replace, [step]

    def stop(source, target):
        if left[0] == 0:
            raise KeyboardInterrupt("stopped")
        left[0] -= 1
        replace(source, target)

    source = Pictures()
    if step == 3:
        source.contents[2] = b"not an image"
    monkeypatch.setattr(image_cache.os, "replace", stop)
    with pytest.raises((KeyboardInterrupt, UnreadableImage), match=r"stopped|image 2 cannot be read"):
        make(tmp_path, source)
    monkeypatch.undo()
    assert not CacheFiles(tmp_path, "train").hold(SETTINGS)
    assert not (tmp_path / "train.json").exists()
    make(tmp_path)
    assert CachedImages(tmp_path, "train").read(0).image.shape == (16, 21, 3)
    assert sorted(files(tmp_path)) == ["train.index.npy", "train.json", "train.pixels"]


def test_an_image_that_cannot_be_read_ends_it_or_is_marked(tmp_path):
    with pytest.raises(UnreadableImage, match=r"image 1 cannot be read: (?i:.*truncated).*: `--data\.corrupt skip`"):
        make(tmp_path, Pictures(broken=2))
    make(tmp_path, Pictures(broken=2), corrupt="skip")
    images = CachedImages(tmp_path, "train", "skip")
    assert len(images) == 6 and images.read(3).image.shape == (21, 16, 3)
    with pytest.raises(UnreadableImage, match=r"image 2 of .*, which could not be read when .* was made, cannot"):
        OpenedImage(images.read(2))
    with pytest.raises(UnreadableImage, match=r"2 of the 6 images of .*train\.pixels could not be read when"):
        CachedImages(tmp_path, "train", "raise")


def test_an_image_of_the_size_of_imagenet_takes_what_is_said():
    image = image_cache.resize_shorter_side(noise(500, 375), 256)
    assert round(np.asarray(image).nbytes, -3) == 262_000


def test_making_a_cache_draws_no_number_from_the_global_generator(tmp_path):
    before = image_cache.torch.get_rng_state()
    make(tmp_path)
    assert image_cache.torch.equal(image_cache.torch.get_rng_state(), before)


def test_of_two_processes_one_makes_the_cache(tmp_path):
    context = image_cache.torch.multiprocessing.get_context("fork")
    opened = context.Value("i", 0)

    def slow():
        with opened.get_lock():
            opened.value += 1
        time.sleep(0.3)
        return Pictures()

    def work():
        ensure_cache(tmp_path, "train", SETTINGS, slow, size=16, workers=0, corrupt="raise")

    processes = [context.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert opened.value == 1 and len(CachedImages(tmp_path, "train")) == 4

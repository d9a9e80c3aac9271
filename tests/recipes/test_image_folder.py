import pytest

from recipes.data.image_folder import ImageFolder, class_names
from tests.recipes.pictures import write_folders


def test_classes_are_in_the_order_of_their_names(tmp_path):
    for name in ("n10", "n2", "Zebra", "ant"):
        (tmp_path / name).mkdir()
    (tmp_path / "readme.txt").write_text("no class")
    assert class_names(tmp_path) == ["Zebra", "ant", "n10", "n2"]


def test_images_are_those_of_the_folders_and_other_files_are_passed_over(tmp_path):
    root = write_folders(tmp_path) / "train"
    (root / "bee" / "notes.txt").write_text("no image")
    (root / "bee" / "z.JPEG").write_bytes(b"")
    (root / "dog").mkdir()
    images = ImageFolder(root, class_names(root))
    assert list(images.names) == ["ant", "bee", "cat", "dog"]
    read = [images.read(key) for key in images.order(shuffle=False, seed=0, epoch=0)]
    names = ["ant/000.png", "ant/003.png", "ant/006.png", "bee/001.png", "bee/004.png", "bee/z.JPEG", "cat/002.png"]
    assert images.files == [*names, "cat/005.png"]
    assert [image.image for image in read] == [str(root / name) for name in images.files]
    assert [image.name for image in read] == [str(root / name) for name in images.files]
    assert [image.label for image in read] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert [image.position for image in read] == list(range(len(images))) == list(range(8))


def test_names_of_files_may_have_any_letters(tmp_path):
    (tmp_path / "Bär").mkdir()
    (tmp_path / "Bär" / "größe 1.png").write_bytes(b"")
    images = ImageFolder(tmp_path, ["Bär"])
    assert images.read(0).image == str(tmp_path / "Bär" / "größe 1.png")


def test_a_shuffled_order_has_every_image_once(tmp_path):
    images = ImageFolder(write_folders(tmp_path) / "train", ["ant", "bee", "cat"])
    order = list(images.order(shuffle=True, seed=0, epoch=1))
    assert sorted(order) == list(range(7)) != order


def test_what_is_no_folder_of_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold a folder for each class, got nothing"):
        class_names(tmp_path)
    (tmp_path / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"")
    with pytest.raises(ValueError, match=r"must hold a folder for each class, got ILSVRC2012_val_00000001\.JPEG: sort"):
        class_names(tmp_path)
    (tmp_path / "ant").mkdir()
    with pytest.raises(ValueError, match=r"must hold images \(\.bmp, .* in the folders of classes, got none"):
        ImageFolder(tmp_path, ["ant"])
    with pytest.raises(
        ValueError, match=r"one of the 2 classes \(bee, cat, \.\.\.\), got ant: the training images have"
    ):
        ImageFolder(tmp_path, ["bee", "cat"])

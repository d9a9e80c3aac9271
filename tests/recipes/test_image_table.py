import pytest

from recipes.data.image_table import ImageStream, ImageTable, count_rows, read_parquet
from tests.recipes.pictures import encoded, numbered, table, write_parquet

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

LABEL = datasets.ClassLabel(names=["ant"])


pytestmark = pytest.mark.usefixtures("own_datasets")


def rows(count, labels=None, **options):
    contents = [encoded(numbered(number)) for number in range(count)]
    return table(contents, [number % 3 for number in range(count)] if labels is None else labels, **options)


def files(root):
    return sorted(root.glob("train-*.parquet"))


def numbered_order(source, **options):
    """Numbers of the pictures of a source, in its order."""
    contents = {encoded(numbered(number)): number for number in range(40)}
    return [contents[source.read(key).image] for key in source.order(**options)]


def stream(root, buffer=4):
    return ImageStream(read_parquet(files(root), streaming=True), count_rows(files(root)), "stream", buffer)


def test_a_table_gives_encoded_images(tmp_path):
    images = ImageTable(read_parquet(files(write_parquet(tmp_path))), "files")
    assert len(images) == 7 and list(images.names) == ["ant", "bee", "cat"]
    assert images.read(4) == (4, encoded(numbered(4)), 1, "image 4 of files")
    assert numbered_order(images, shuffle=False, seed=0, epoch=0) == list(range(7))


def test_a_stream_gives_the_images_of_the_table(tmp_path):
    images = stream(write_parquet(tmp_path))
    assert len(images) == 7 and list(images.names) == ["ant", "bee", "cat"]
    keys = list(images.order(shuffle=False, seed=0, epoch=0))
    assert images.read(keys[4]) == (4, encoded(numbered(4)), 1, "image 4 of stream")
    assert numbered_order(images, shuffle=False, seed=3, epoch=2) == list(range(7))


@pytest.mark.parametrize("parts", [1, 3])
def test_a_stream_is_shuffled_by_seed_and_epoch(tmp_path, parts):
    root = write_parquet(tmp_path, train=24, files=parts)
    orders = [
        numbered_order(stream(root), shuffle=True, seed=seed, epoch=epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    assert all(sorted(order) == list(range(24)) for order in orders)
    assert len({tuple(order) for order in [*orders, range(24)]}) == 4
    assert numbered_order(stream(root), shuffle=True, seed=0, epoch=1) == orders[1]


def test_an_image_may_be_the_name_of_a_file(tmp_path):
    (tmp_path / "7.png").write_bytes(encoded(numbered(7)))
    named = datasets.Dataset.from_dict({"image": [str(tmp_path / "7.png")], "label": [0]})
    named = named.cast_column("image", datasets.Image()).cast_column("label", LABEL)
    image = ImageTable(named, "rows").read(0)
    assert image.image == str(tmp_path / "7.png") and image.name == f"image 0 of rows ({tmp_path / '7.png'})"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: rows(3, image="picture"), r"must have the columns 'image' and 'label', got \['picture', 'label'\]"),
        (lambda: rows(3).remove_columns("label"), r"must have the columns 'image' and 'label', got \['image'\]"),
        (lambda: rows(3).cast_column("label", datasets.Value("int64")), "'label' of rows must be a ClassLabel"),
        (lambda: datasets.Dataset.from_dict({"image": ["a"], "label": [0]}).cast_column("label", LABEL),
         "'image' of rows must be an Image, got .*string"),
        (lambda: rows(3, labels=[0, -1, 2]), "labels of rows must be between 0 and 2, .* its 3 classes, got -1"),
        (lambda: rows(0), "rows must hold images, it is empty"),
    ],
    ids=["no images", "no labels", "labels without names", "no pixels", "unpublished labels", "empty"],
)  # fmt: skip
def test_a_table_that_is_not_one_of_images_is_refused(made, message):
    with pytest.raises(ValueError, match=message):
        ImageTable(made(), "rows")


def test_a_stream_is_checked_too(tmp_path):
    root = write_parquet(tmp_path, image="picture")
    with pytest.raises(ValueError, match="stream must have the columns 'image' and 'label'"):
        stream(root)
    unlabelled = ImageStream(rows(3, labels=[0, -1, 2]).to_iterable_dataset(), 3, "stream", 4)
    with pytest.raises(ValueError, match="labels of stream, image 1 of the stream, must be between 0 and 2"):
        list(unlabelled.order(shuffle=False, seed=0, epoch=0))


def test_labels_above_the_classes_are_refused(tmp_path):
    (file,) = files(write_parquet(tmp_path, train=3, files=1))
    content = parquet.read_table(file)
    # `datasets` would not write such a file, but reads it
    parquet.write_table(content.set_column(1, content.schema.field("label"), pyarrow.array([0, 3, 1])), file)
    with pytest.raises(ValueError, match=r"labels of files must be between 0 and 2, .* its 3 classes, got 3"):
        ImageTable(read_parquet([file]), "files")
    with pytest.raises(ValueError, match=r"labels of stream, image 1 of the stream, must be .* got 3"):
        list(stream(tmp_path).order(shuffle=False, seed=0, epoch=0))


@pytest.mark.parametrize("streaming", [True, False])
def test_a_file_of_another_format_is_named(tmp_path, streaming):
    (tmp_path / "train-0.parquet").write_text("no table")
    with pytest.raises(ValueError, match=r"train-0\.parquet must be a Parquet file that holds images"):
        read_parquet(files(tmp_path), streaming=streaming)

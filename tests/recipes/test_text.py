import pytest
import torch
from torch.testing import assert_close

from recipes.data import text
from recipes.data.streams import IGNORED
from recipes.data.text import PennTreebank
from tests.recipes.tiny import transcribed

datasets = pytest.importorskip("datasets")


def ready(path, **options):
    data = PennTreebank(str(path), **{"batch_size": 4, "steps": 5, "eval_batch_size": 3, **options})
    data.setup("fit")
    return data


def streams(data):
    """The three streams as predicted, column by column."""
    loaders = {"train": data.train_dataloader(), "valid": data.val_dataloader(), "test": data.test_dataloader()}
    joined = {part: torch.cat([targets for _, targets in loader]).T.flatten() for part, loader in loaders.items()}
    return {part: [token for token in tokens.tolist() if token != IGNORED] for part, tokens in joined.items()}


def as_parquet(folder, column="sentence"):
    target = folder.parent / "parquet"
    for part, split in (("train", "train"), ("valid", "validation"), ("test", "test")):
        lines = [line.strip() for line in (folder / f"ptb.{part}.txt").read_text().splitlines()]
        half = len(lines) // 2
        for number, rows in enumerate((lines[:half], lines[half:])):
            path = target / f"{split}-0000{number}-of-00002.parquet"
            datasets.Dataset.from_dict({column: rows}).to_parquet(str(path))
    return target


def test_streams_equal_a_plain_transcription_of_the_files(corpus):
    data, expected = ready(corpus), transcribed(corpus)
    numbers = {word: number for number, word in enumerate(dict.fromkeys(["<eos>", *expected["train"]]))}
    assert data.vocabulary_size == len(numbers) == 23
    assert streams(data) == {part: [numbers[word] for word in words] for part, words in expected.items()}


def test_parquet_equals_text(corpus):
    assert streams(ready(as_parquet(corpus))) == streams(ready(corpus))


def test_a_share_is_the_beginning_of_the_training_text_with_the_whole_vocabulary(corpus):
    whole, part = ready(corpus), ready(corpus, train_share=0.25)
    assert part.vocabulary_size == whole.vocabulary_size
    expected = streams(whole)
    expected["train"] = expected["train"][: round(len(expected["train"]) / 4)]
    assert streams(part) == expected


def test_the_text_is_read_once_for_fit_and_test(corpus, monkeypatch):
    data = ready(corpus)
    monkeypatch.setattr(text, "read", None)
    data.setup("test")
    assert len(data.test_dataloader()) > 0


def test_a_missing_folder_or_file_is_named(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`path` must be a folder with the Penn Treebank, got .*nowhere"):
        ready(tmp_path / "nowhere")
    (corpus / "ptb.valid.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected the file .*ptb\.valid\.txt, which is not there"):
        ready(corpus)


def test_missing_parquet_files_and_columns_are_named(corpus):
    with pytest.raises(
        ValueError, match=r"train-00000-of-00002\.parquet must have a column 'sentence', got \['text'\]"
    ):
        ready(as_parquet(corpus, column="text"))
    folder = as_parquet(corpus)
    for path in folder.glob("test-*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected files .*test-\*\.parquet, got only train-00000"):
        ready(folder)


def test_parquet_files_without_sentences_are_refused(corpus):
    folder = as_parquet(corpus)
    datasets.Dataset.from_dict({"sentence": []}).to_parquet(str(folder / "test-00000-of-00002.parquet"))
    (folder / "test-00001-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"test-00000-of-00002\.parquet must be a Parquet file that holds sentences"):
        ready(folder)
    (folder / "train-00000-of-00002.parquet").write_text("w1 w2")
    with pytest.raises(ValueError, match=r"train-00000-of-00002\.parquet must be a Parquet file"):
        ready(folder)


@pytest.mark.parametrize("content", [b"", b" \n\n"], ids=["nothing", "white space"])
def test_an_empty_file_is_refused(corpus, content):
    (corpus / "ptb.test.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"ptb\.test\.txt must hold sentences"):
        ready(corpus)


def test_a_file_that_is_not_text_is_refused(corpus):
    (corpus / "ptb.train.txt").write_bytes(b"w1 w2\nw\xff3\n")
    with pytest.raises(ValueError, match=r"ptb\.train\.txt must be text in UTF-8, but its byte 7 is not"):
        ready(corpus)


def test_a_word_that_training_does_not_have_is_refused(corpus):
    (corpus / "ptb.valid.txt").write_text("w1 w2\nw1 unseen\n")
    with pytest.raises(ValueError, match=r"every word of .*ptb\.valid\.txt must be .*; line 2 has 'unseen'"):
        ready(corpus)


def test_a_hub_that_cannot_be_read_is_explained(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        ConnectionError, match=r"could not be read from the Hugging Face hub .* download ptb\.train\.txt"
    ):
        PennTreebank().prepare_data()


def test_the_hub_is_the_default(monkeypatch):
    asked = []

    def load(name, *, split, revision):
        asked.append((name, split, revision))
        return {"sentence": ["a b", "b"]}

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = PennTreebank(batch_size=1, eval_batch_size=1)
    data.prepare_data()
    data.setup("fit")
    assert_close(next(iter(data.train_dataloader()))[1].flatten(), torch.tensor([1, 2, 0, 2, 0]))
    assert {name for name, _, _ in asked} == {"ptb-text-only/ptb_text_only"}
    assert [split for _, split, _ in asked] == ["train", "train", "validation", "test"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_share": 0.0}, "`train_share` must be more than 0 and at most 1, got 0.0"),
        ({"train_share": 1.5}, "`train_share` must be more than 0 and at most 1, got 1.5"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"steps": -1}, "`steps` must be at least 1, got -1"),
        ({"eval_batch_size": 0}, "`eval_batch_size` must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PennTreebank(**options)

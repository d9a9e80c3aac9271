"""The Penn Treebank as Mikolov et al. 2010 prepared it: 10 000 words, 929 589 tokens to train on."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from recipes.data.module import Split, TextModule
from recipes.data.vocabulary import Vocabulary

HUB = "ptb-text-only/ptb_text_only"
REVISION = "refs/convert/parquet"
"""Where the hub keeps what it made from a data set whose own form is a program, which `datasets` no longer runs."""

COLUMN = "sentence"
TEXT_FILES: dict[Split, str] = {"train": "ptb.train.txt", "validation": "ptb.valid.txt", "test": "ptb.test.txt"}
PARQUET_FILES: dict[Split, str] = {split: f"{split}-*.parquet" for split in TEXT_FILES}


class PennTreebank(TextModule):
    """The Penn Treebank, from the Hugging Face hub or from a folder.

    Args:
        path: folder with ``ptb.train.txt``, ``ptb.valid.txt`` and ``ptb.test.txt``, or with Parquet files
            ``train-*.parquet``, ``validation-*.parquet`` and ``test-*.parquet`` that have a column ``sentence``; or
            ``None`` for the hub.
        batch_size: columns of the training text that are read side by side, by all processes together.
        steps: tokens of a column in one batch: how far gradients go back.
        eval_batch_size: columns of the validation and the test text. Each begins with an empty state.
        train_share: share of the training text to train on, from its beginning. The vocabulary is always that of the
            whole training text, validation and test text are always whole.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        path: str | None = None,
        batch_size: int = 20,
        steps: int = 35,
        eval_batch_size: int = 10,
        train_share: float = 1.0,
    ) -> None:
        super().__init__(batch_size, steps, eval_batch_size)
        if not 0 < train_share <= 1:
            raise ValueError(f"`train_share` must be more than 0 and at most 1, got {train_share}")
        self.path = path
        self.train_share = train_share

    def prepare_data(self) -> None:
        """Download the text, in one process of each machine."""
        if self.path is None:
            read_hub("train")

    def tokens(self) -> dict[Split, Tensor]:
        """Read and encode the text."""
        texts = {split: read(self.path, split) for split in TEXT_FILES}
        vocabulary = Vocabulary(texts["train"][0])
        self.vocabulary_size = len(vocabulary)
        tokens = {split: vocabulary.encode(sentences, source) for split, (sentences, source) in texts.items()}
        tokens["train"] = tokens["train"][: round(self.train_share * len(tokens["train"]))]
        return tokens


def read(path: str | None, split: Split) -> tuple[Iterable[str], str]:
    """Return the sentences of a part of the text, and where they are from.

    Raises:
        ConnectionError: if the hub cannot be read.
        FileNotFoundError: if the folder does not exist or has no file for the part.
        ValueError: if a file is not what it must be.
    """
    if path is None:
        return read_hub(split), f"{HUB} ({split})"
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"`path` must be a folder with the Penn Treebank, got {path!r}, which is none")
    if list(folder.glob("*.parquet")):
        return read_parquet(folder, split), f"{folder / PARQUET_FILES[split]}"
    file = folder / TEXT_FILES[split]
    return read_text(file), str(file)


def read_text(file: Path) -> list[str]:
    """Return the lines of a text file."""
    if not file.is_file():
        raise FileNotFoundError(
            f"expected the file {file}, which is not there: `path` must be a folder with "
            f"{', '.join(TEXT_FILES.values())}, or with Parquet files {', '.join(PARQUET_FILES.values())}"
        )
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be text in UTF-8, but its byte {error.start} is not: {error.reason}") from error
    if not text.strip():
        raise ValueError(f"{file} must hold sentences, one a line, it is empty")
    return text.split("\n")[: None if text[-1] != "\n" else -1]


def read_parquet(folder: Path, split: Split) -> list[str]:
    """Return the sentences of the Parquet files of a part."""
    files = sorted(folder.glob(PARQUET_FILES[split]))
    if not files:
        found = sorted(path.name for path in folder.glob("*.parquet"))
        raise FileNotFoundError(f"expected files {folder / PARQUET_FILES[split]}, got only {', '.join(found)}")
    from pyarrow import ArrowInvalid, parquet  # not at the top: text files do not need the package

    sentences: list[str] = []
    for path in files:
        try:
            table = parquet.read_table(path)
        except ArrowInvalid as error:
            raise ValueError(f"{path} must be a Parquet file that holds sentences: {error}") from error
        if COLUMN not in table.column_names:
            raise ValueError(f"{path} must have a column {COLUMN!r}, got {table.column_names}")
        sentences += table[COLUMN].to_pylist()
    if not sentences:
        raise ValueError(f"{files[0]} must be a Parquet file that holds sentences, it is empty")
    return sentences


def read_hub(split: Split) -> list[str]:
    """Return the sentences of a part of the text, downloaded before or now."""
    from datasets import load_dataset  # not at the top: only the hub needs the package

    try:
        return load_dataset(HUB, revision=REVISION, split=split)[COLUMN][:]
    except Exception as error:  # each kind of failure has an exception of its own, from three packages
        raise ConnectionError(
            f"the Penn Treebank could not be read from the Hugging Face hub ({HUB}, {REVISION}). Without a "
            f"connection, download {', '.join(TEXT_FILES.values())} (the `data` folder of T. Mikolov's "
            "simple-examples.tgz) or the Parquet files of that data set on another machine, put them into one folder "
            "and name it: `--data.path FOLDER`"
        ) from error

"""Words and their token numbers."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

END = "<eos>"
"""Ends every sentence; token 0."""


class Vocabulary:
    """The words of a text, numbered in the order in which they appear, after the end of a sentence.

    Args:
        sentences: the text, one sentence an item, words apart by white space.

    Example:
        >>> vocabulary = Vocabulary(["a b", "b c"])
        >>> vocabulary.words, vocabulary.encode(["c a"], "some text").tolist()
        (['<eos>', 'a', 'b', 'c'], [3, 1, 0])
    """

    def __init__(self, sentences: Iterable[str]) -> None:
        self._tokens = {END: 0}
        for sentence in sentences:
            for word in sentence.split():
                self._tokens.setdefault(word, len(self._tokens))

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def words(self) -> list[str]:
        """Every word, at the place of its number."""
        return list(self._tokens)

    def encode(self, sentences: Iterable[str], source: str) -> Tensor:
        """Return the numbers of all words, each sentence followed by its end, as one int64 tensor.

        Args:
            sentences: the text.
            source: where it is from, for the message of an error.

        Raises:
            ValueError: if a word is not in the vocabulary.
        """
        return torch.tensor(list(self._numbers(sentences, source)), dtype=torch.int64)

    def _numbers(self, sentences: Iterable[str], source: str) -> Iterator[int]:
        for line, sentence in enumerate(sentences, start=1):
            for word in sentence.split():
                if word not in self._tokens:
                    raise ValueError(
                        f"every word of {source} must be in the vocabulary of the training text, which has "
                        f"{len(self)} words; line {line} has {word!r}: replace it by a word such as '<unk>' that the "
                        "training text has, or take the files of one corpus"
                    )
                yield self._tokens[word]
            yield self._tokens[END]

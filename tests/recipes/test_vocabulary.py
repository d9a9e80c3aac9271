import pytest

from recipes.data.vocabulary import Vocabulary


def test_words_are_numbered_as_they_appear_after_the_end_of_a_sentence():
    assert Vocabulary(["b a ", " a c", ""]).words == ["<eos>", "b", "a", "c"]


def test_every_sentence_is_followed_by_its_end():
    vocabulary = Vocabulary(["a b"])
    assert vocabulary.encode(["b a", "", "a"], "text").tolist() == [2, 1, 0, 0, 1, 0]
    assert len(vocabulary) == 3


def test_an_unknown_word_is_refused_with_its_line_and_source():
    message = r"every word of valid\.txt must be in the vocabulary .* 2 words; line 3 has 'b'"
    with pytest.raises(ValueError, match=message):
        Vocabulary(["a"]).encode(["a", "a", "a b"], "valid.txt")

"""A closed vocabulary on the frame clock."""

import pytest

from vivavoce.errors import RequestError
from vivavoce.tokenizers.words import WordVocabulary


def test_pad_words_and_the_end_of_pads_are_ids_of_their_own():
    plain, marked = WordVocabulary(["one", "two"]), WordVocabulary(["one", "two"], end_of_pad=True)
    assert (len(plain), plain.end_of_pad) == (3, None) and (len(marked), marked.end_of_pad) == (4, 3)
    assert plain.spoken("Two, one.") == [[2], [1]] and marked.spoken("Two, one.") == [[3, 2], [3, 1]]
    assert marked.encode("two one") == [2, 1]
    assert marked.text([0, 3, 2, 0, 3, 1, 0]) == "two one" == plain.text([0, 2, 0, 1])
    with pytest.raises(RequestError, match="'three' is not in the vocabulary: one, two"):
        marked.encode("three")


def test_one_word_may_stand_for_all_others():
    some = WordVocabulary(["one", "<unk>", "two"], unknown="<unk>")
    assert some.encode("two or one") == [3, 2, 1] and some.text([3, 2, 1]) == "two <unk> one" and len(some) == 4
    with pytest.raises(RequestError, match="'else' is to stand for unknown words"):
        WordVocabulary(["one"], unknown="else")

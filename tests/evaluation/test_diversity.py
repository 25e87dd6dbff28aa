"""auto-BLEU, self-BLEU and VERT against their definitions written out, against NLTK's BLEU, and by hand."""

import math
import random
from collections import Counter

import pytest

from vivavoce.errors import RequestError
from vivavoce.evaluation.diversity import auto_bleu, repeated_ngrams, self_bleu, spoken_words, vert, written_words

bleu_score = pytest.importorskip("nltk.translate.bleu_score")


def texts(seed, count=12, kinds=6, longest=14):
    draw = random.Random(seed)
    return [[draw.choice("abcdefgh"[:kinds]) for _ in range(draw.randrange(longest))] for _ in range(count)]


def grams(words, n):
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def mean(shares, averaging):
    if averaging == "arithmetic":
        return sum(shares) / len(shares)
    return math.prod(shares) ** (1 / len(shares))


def auto_bleu_by_definition(words, n, averaging):
    """For each n-gram: is it among those of what stands before it and of what stands behind it?"""
    if len(words) <= 1:
        return 0.0
    shares = []
    for order in range(1, n + 1):
        hits = [
            gram in grams(words[:place], order) + grams(words[place + order :], order)
            for place, gram in enumerate(grams(words, order))
        ]
        shares.append(sum(hits) / len(hits) if hits else 0.0)
    return mean(shares, averaging)


def self_bleu_by_nltk(words, others, n, averaging):
    """Modified precisions of one text against the others, averaged, with no penalty for brevity."""
    shares = [float(bleu_score.modified_precision(others, words, order)) for order in range(1, n + 1)]
    return mean(shares, averaging) if shares[0] else 0.0


@pytest.mark.parametrize("averaging", ["geometric", "arithmetic"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_both_are_what_their_definitions_say(n, averaging):
    for seed in range(8):
        some = texts(seed, kinds=3 + seed % 4)
        found = self_bleu(some, n, averaging)
        for index, words in enumerate(some):
            assert auto_bleu(words, n, averaging) == pytest.approx(auto_bleu_by_definition(words, n, averaging))
            others = some[:index] + some[index + 1 :]
            assert found[index] == pytest.approx(self_bleu_by_nltk(words, others, n, averaging)), (seed, index)


def test_self_bleu_is_nltks_sentence_bleu_where_brevity_costs_nothing():
    some = [words for words in texts(3, count=20, longest=9) if len(words) > 4]
    some.append([word for words in some for word in words])  # longest: longer than any reference
    others = some[:-1]
    expected = bleu_score.sentence_bleu(others, some[-1], weights=(0.5, 0.5))
    assert 0.1 < expected < 1 and self_bleu(some)[-1] == pytest.approx(expected)


def test_by_hand():
    # bigrams: a-b b-a a-b, and its unigrams all stand twice
    assert auto_bleu(list("abab")) == pytest.approx(math.sqrt(1.0 * 2 / 3))
    assert auto_bleu(list("abab"), averaging="arithmetic") == pytest.approx((1 + 2 / 3) / 2)
    # a-a at 0 and at 1 share a word: GSLM does not count that, Slam does
    assert auto_bleu(list("aaa")) == 0.0 and repeated_ngrams(list("aaa")) == 1.0
    assert auto_bleu(list("aaaa")) == pytest.approx(math.sqrt(1.0 * 2 / 3)) and repeated_ngrams(list("aaaa")) == 1.0
    assert repeated_ngrams(list("abcab")) == pytest.approx(2 / 4) and repeated_ngrams(list("abcd")) == 0.0
    # "the" stands twice here and once in the other: one of three words is left, and no pair of words
    assert self_bleu([["the", "the", "cat"], ["the", "dog"]], 1) == pytest.approx([1 / 3, 1 / 2])
    assert self_bleu([["a", "b"], ["a", "b"], ["c"]]) == pytest.approx([1.0, 1.0, 0.0])
    assert vert([0.5, 0.3], [0.1, 0.0]) == pytest.approx(math.sqrt(0.4 * 0.05))


def test_little_text_is_no_text():
    assert auto_bleu([]) == auto_bleu(["one"]) == repeated_ngrams([]) == repeated_ngrams(["one"]) == 0.0
    assert math.isnan(self_bleu([["a", "b"]])[0]) and self_bleu([]) == []
    assert self_bleu([[], ["a"]]) == [0.0, 0.0]
    with pytest.raises(RequestError, match="order 0"):
        auto_bleu(["a", "b"], 0)
    with pytest.raises(RequestError, match="averaging 'mean'"):
        auto_bleu(["a", "b"], averaging="mean")


def test_words_as_they_are_spoken_and_as_they_are_written():
    assert spoken_words("I don't KNOW -- well, 3 o'clock?") == ["i", "don't", "know", "well", "3", "o'clock"]
    assert spoken_words(" ... ") == []
    assert written_words("Well, I don't know.") == ["Well", ",", "I", "do", "n't", "know", "."]


def test_slams_count_is_that_of_its_definition():
    for words in texts(1, count=30, kinds=3):
        found = grams(words, 2)
        again = [g for place, g in enumerate(found) if g in found[:place] or g in found[place + 1 :]]
        assert repeated_ngrams(words) == pytest.approx(len(again) / len(found) if found else 0)
        assert Counter(again).total() != 1

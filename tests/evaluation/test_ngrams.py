"""N-gram models: probabilities that sum to one, and equal nltk's where the definitions agree."""

import math
from itertools import product

import numpy as np
import pytest

from vivavoce.errors import RequestError
from vivavoce.evaluation.ngrams import SMOOTHINGS, NGram

SIZE = 7


def chain(count, length, seed=0, order=2):
    """Sequences of a made-up process in which an id hangs on the `order` ids before it."""
    rng = np.random.default_rng(seed)
    table = np.random.default_rng(99).dirichlet(np.full(SIZE, 0.2), (SIZE + 1) ** order)
    found = []
    for _ in range(count):
        ids = [SIZE] * order
        for _ in range(length):
            state = 0
            for past in ids[-order:]:
                state = state * (SIZE + 1) + past
            ids.append(int(rng.choice(SIZE, p=table[state])))
        found.append(np.array(ids[order:]))
    return found


@pytest.fixture(scope="module")
def data():
    return chain(12, 60), chain(6, 60, seed=1)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("repeats", [True, False])
def test_probabilities_sum_to_one_behind_every_context(data, smoothing, order, repeats):
    train, test = data
    model = NGram(train, SIZE, order, smoothing, held_out=test, repeats=repeats)
    for context in [*product(range(SIZE), repeat=2), (), (3,), (0, 1, 2, 3, 4)]:
        found = model.distribution(context)
        assert found.min() >= 0 and abs(found.sum() - 1) < 1e-9
        if order > 1 and not repeats and context:
            assert found[context[-1]] == 0
    sequence = test[0] if repeats else test[0][np.concatenate([[True], test[0][1:] != test[0][:-1]])]
    assert np.allclose(model.totals([sequence, test[1][:0], sequence[:7]]),
                       [model.scores(sequence).sum(), 0.0, model.scores(sequence[:7]).sum()])  # fmt: skip
    steps = [math.log(model.distribution(sequence[:i])[sequence[i]]) for i in range(len(sequence))]
    assert np.allclose(model.scores(sequence), steps, atol=1e-9)


@pytest.mark.parametrize("order", [2, 3])
def test_equals_nltk(data, order):
    lm = pytest.importorskip("nltk.lm")
    train, test = data
    padded = [(*["<"] * (order - 1), *map(str, ids)) for ids in train]
    grams = [
        [tuple(ids[end - n : end]) for end in range(order, len(ids) + 1) for n in range(1, order + 1)] for ids in padded
    ]
    names = [str(i) for i in range(SIZE)]
    kneser = lm.KneserNeyInterpolated(order, discount=0.6)
    witten = lm.WittenBellInterpolated(order)
    for theirs, smoothing, more in ((kneser, "kneser-ney", {"discount": 0.6}), (witten, "witten-bell", {})):
        theirs.fit(grams, vocabulary_text=names)
        ours = NGram(train, SIZE, order, smoothing, uniform=False, **more)
        for ids in test[:2]:
            # behind the beginning contexts are counted plainly by us, by nltk as any other
            for end in range(2 * order, len(ids), 7):
                context = [str(i) for i in ids[end - order + 1 : end]]
                if not theirs.counts[tuple(context)].N():
                    continue  # nltk has no rule for contexts that it has never seen
                for word in range(SIZE):
                    expected = theirs.score(str(word), context)
                    assert ours.distribution(ids[:end])[word] == pytest.approx(expected, abs=1e-9)


def test_discounts_are_chen_and_goodmans():
    model = NGram([np.array([0, 1, 0, 1, 0, 2, 0, 2, 0, 3, 4, 5, 6, 0, 1, 0, 1])], SIZE, 2, "kneser-ney")
    counts = model._tables[1].counts  # of the pairs, the begin mark's included
    n = [int((counts == k).sum()) for k in (1, 2, 3, 4)]
    y = n[0] / (n[0] + 2 * n[1])
    expected = [1 - 2 * y * n[1] / n[0], 2 - 3 * y * n[2] / n[1]]
    assert np.allclose(model._tables[1].discounts[1:3], np.clip(expected, 0, [1, 2]))


def test_more_context_helps_where_it_matters(data):
    train, test = chain(200, 60), chain(20, 60, seed=1)
    tune = chain(20, 60, seed=2)
    for smoothing in SMOOTHINGS:
        models = {n: NGram(train, SIZE, n, smoothing, held_out=tune) for n in (1, 2, 3, 4)}
        cost = {n: model.cross_entropy(test) for n, model in models.items()}
        assert cost[3] < cost[2] - 0.05 < cost[1] - 0.1, smoothing
        assert cost[4] < cost[3] + 0.15, smoothing  # no harm, for there is nothing more to know


def test_jelinek_mercer_is_fitted(data):
    train, held_out = chain(30, 60), chain(10, 60, seed=3)
    fitted = NGram(train, SIZE, 3, "jelinek-mercer", held_out=held_out)
    plain = NGram(train, SIZE, 3, "jelinek-mercer", weights=np.full_like(fitted.weights, 0.5))
    assert fitted.cross_entropy(held_out) < plain.cross_entropy(held_out) - 0.01
    again = NGram(train, SIZE, 3, "jelinek-mercer", weights=fitted.weights)
    assert again.cross_entropy(held_out) == fitted.cross_entropy(held_out)


def test_what_cannot_be_counted_is_refused():
    for arguments, message in [
        (([], SIZE, 2), "give sequences"),
        (([np.array([0, SIZE])], SIZE, 2), "from 0 to 6"),
        (([np.array([0])], SIZE, 0), "order 0"),
        (([np.array([0])], SIZE, 2, "good-turing"), "there are kneser-ney"),
        (([np.array([0])], SIZE, 2, "jelinek-mercer"), "held_out"),
    ]:
        with pytest.raises(RequestError, match=message):
            NGram(*arguments)

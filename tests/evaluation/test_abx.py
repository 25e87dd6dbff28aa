"""ABX: libri-light's own fixtures and figures, a brute-force reference, and what the two rules differ in."""

import itertools
import math
import random

import numpy as np
import pytest

from proves import proves
from vivavoce.errors import DataError, RequestError
from vivavoce.evaluation.abx import (
    DISTANCES,
    Token,
    _angular,
    _euclidean,
    _Groups,
    abx,
    cut,
    read_items,
    warped,
    with_singularity,
    write_items,
)

# The item files of libri-light's unit tests (eval/ABX_src/test_data); its feature files hold 0, 1, 2, …
WITHIN = """#file onset offset #phone prev-phone next-phone speaker
2107 0. 0.2 n p d 8193
2107 0.3225 0.5225 n ae d 8193
2107 0.6 0.75 n ae d 8193
2107 0.4225 0.5925 d n l 2222
42 0.4525 0.6525 d n l 2222
42 0.1301 0.2501 q n l 2222
42 0.5225 0.7325 d n l 8193
42 0.0025 0.3561 d p l 2222
42 0.5925 0.8725 d p l 8193
"""
RAMP = {"2107": np.arange(20.0)[:, None], "42": np.arange(20.0)[:, None]}


@pytest.fixture
def within(tmp_path):
    place = tmp_path / "within.item"
    place.write_text(WITHIN)
    return read_items(place)


@proves("abx", "recipe", "fixture")
def test_item_files_are_read_as_libri_light_reads_them(within, tmp_path):
    assert len(within) == 9 and within[3] == Token("2107", 0.4225, 0.5925, "d", "n", "l", "2222")
    write_items(within, tmp_path / "again.item")
    assert read_items(tmp_path / "again.item") == within
    for text, message in (("", "without items"), ("#\n1 2 3\n", "line 2"), ("#\na 1 x p q r s\n", "line 2")):
        (tmp_path / "bad.item").write_text(text)
        with pytest.raises(DataError, match=message):
            read_items(tmp_path / "bad.item")
    with pytest.raises(DataError, match="no such"):
        read_items(tmp_path / "none.item")


def test_frames_of_a_token_are_libri_lights_or_one_more():
    ramp = np.arange(20)
    for onset, offset, expected in ((0.3225, 0.5225, [3]), (0.4525, 0.6525, [5]), (0.8725, 1.2425, [9, 10])):
        assert cut(ramp, 10.0, onset, offset, "librilight").tolist() == expected
        assert cut(ramp, 10.0, onset, offset, "corrected").tolist() == [*expected, expected[-1] + 1]
    sizes = [(0.3225, 0.5225), (0.4225, 0.5925), (1.1025, 1.2925), (0.4525, 0.6525), (0.5225, 0.7325), (0.5925, 0.8725),
             (0.6525, 1.1025), (0.7325, 1.1925), (0.8725, 1.2425)]  # fmt: skip
    assert sum(len(cut(ramp, 10.0, *times, "librilight")) for times in sizes) == 16  # testBaseLoader of libri-light
    assert not len(cut(ramp, 10.0, 0.61, 0.64, "corrected")) and not len(cut(ramp, 10.0, 5.0, 6.0, "corrected"))


@proves("abx", "mechanism", "rule")
def test_triplets_are_those_of_libri_lights_iterator(within):
    """testWithinIterator: one triplet, speaker 2222, phones d and q between n and l."""
    groups = _Groups(within, RAMP, 10.0, "librilight", "within", "euclidean")
    (only,) = groups.within(random.Random(0), 40)
    assert (groups.speakers[only.speaker], groups.phones[only.one], groups.phones[only.other]) == ("2222", "d", "q")
    assert [groups.pieces[i].tolist() for i in only.a] == [[[4.0]], [[5.0]]]
    assert [groups.pieces[i].tolist() for i in only.b] == [[[1.0]]]
    assert list(only.x) == list(only.a) and only.symmetric


@proves("abx", "mechanism", "rule")
def test_warping_gives_libri_lights_distances():
    """testDTWFunction of libri-light, by Euclidean distances of frames."""
    rows = [[0, 1], [0, 0], [1, 1], [42, 42]], [[0, 2], [0, 1], [1, 1], [-1, 0]], [[0, 0], [0, 1], [0, 0], [21, 211]]
    x = np.array(rows, np.float32)
    y = np.array([[[0, 1], [1, 2], [0, 0]]] * 3, np.float32)
    found = warped(_euclidean(x, y), np.array([3, 4, 2]), np.array([3, 3, 3]))
    assert np.allclose(found, [math.sqrt(2) / 2, 3 / 4, (2 + math.sqrt(2)) / 3], atol=1e-4)


def test_silence_is_far_from_everything_as_libri_light_has_it():
    x = [with_singularity(np.array(rows, np.float32)) for rows in
         ([[1, 0, 0, 0], [0, 0, 0, 0]], [[0, 0, -1, 0], [0.5, -0.5, 0.5, -0.5]])]  # fmt: skip
    y = with_singularity(np.array([[-0.5, -0.5, -0.5, 0.5], [0, 0, 0, 0], [0, 1, 0, 0]], np.float32))
    found = _angular(np.stack(x), np.stack([y, y]))
    expected = [[[0.6667, 1, 0.5], [1, 0, 1]], [[0.3333, 1, 0.5], [0.6667, 1, 0.6667]]]
    assert np.allclose(found, expected, atol=1e-4)


def slow_distance(a, b, name):
    """Frames one by one; the path back is walked."""

    def apart(p, q):
        if name == "identical":
            return float(p != q)
        p, q = p.astype(float), q.astype(float)
        if name == "euclidean":
            return math.sqrt(((p - q) ** 2).sum())
        if name == "kl":
            p, q = p / p.sum() + 1e-6, q / q.sum() + 1e-6
            return float((p * np.log(p / q)).sum() + (q * np.log(q / p)).sum()) / 2
        cosine = max(-1.0, min(1.0, float(p @ q) / math.sqrt(float(p @ p) * float(q @ q))))
        return math.acos(cosine) / math.pi if name == "angular" else (1 - cosine) / 2

    cost = {}
    for i, j in itertools.product(range(len(a)), range(len(b))):
        before = [cost[key] for key in ((i - 1, j), (i - 1, j - 1), (i, j - 1)) if key in cost]
        cost[i, j] = apart(a[i], b[j]) + (min(before) if before else 0.0)
    i, j, length = len(a) - 1, len(b) - 1, 1
    while (i, j) != (0, 0):
        steps = [(i - 1, j - 1), (i, j - 1), (i - 1, j)]
        i, j = min((s for s in steps if s in cost), key=lambda s: cost[s])
        length += 1
    return cost[len(a) - 1, len(b) - 1] / length


def slow_abx(tokens, frames, rate, mode, distance, rules):
    """Every triplet in loops over the tokens."""
    known = [(t, cut(frames[t.file], rate, t.onset, t.offset, rules)) for t in tokens]
    known = [(t, f) for t, f in known if len(f)]
    apart = {}

    def d(one, other):
        if (one, other) not in apart:
            apart[one, other] = slow_distance(known[one][1], known[other][1], distance)
        return apart[one, other]

    cells = {}  # (speaker, A, B) -> (context, speaker of X) -> wins of B
    for x, a in itertools.permutations(range(len(known)), 2):
        tx, ta = known[x][0], known[a][0]
        if (tx.phone, tx.before, tx.after) != (ta.phone, ta.before, ta.after):
            continue
        if (tx.speaker == ta.speaker) != (mode == "within"):
            continue
        for b, (tb, _) in enumerate(known):
            if tb.phone == ta.phone or (tb.before, tb.after, tb.speaker) != (ta.before, ta.after, ta.speaker):
                continue
            cell = cells.setdefault((ta.speaker, ta.phone, tb.phone), {})
            wins = cell.setdefault((ta.before, ta.after, tx.speaker), [])
            to_a, to_b = d(min(x, a), max(x, a)) if mode == "within" else d(x, a), d(x, b)
            wins.append(1.0 if to_b < to_a - 1e-7 else 0.5 if abs(to_a - to_b) <= 1e-7 else 0.0)
    by_pair = {}
    for (_, one, other), parts in cells.items():
        by_pair.setdefault((one, other), []).append(np.mean([np.mean(wins) for wins in parts.values()]))
    return float(np.mean([np.mean(each) for each in by_pair.values()]))


def made_up(seed, speakers=3, phones=3, each=3, contexts=2, codes=False):
    """Tokens of one file a speaker, each phone a direction, speakers shifted, noise."""
    chance = np.random.default_rng(seed)
    means = chance.random((phones, 6)) + 0.1
    tokens, frames = [], {}
    for s in range(speakers):
        rows, shift, at = [], chance.random(6) * 0.5, 0
        for c, p, _ in itertools.product(range(contexts), range(phones), range(each)):
            size = int(chance.integers(1, 6))
            tokens.append(Token(f"f{s}", at / 50 + 0.001, (at + size) / 50 + 0.001, f"p{p}", f"b{c}", "a", f"s{s}"))
            rows.append(means[p] + shift + 0.6 * chance.random((size, 6)))
            at += size
        frames[f"f{s}"] = np.concatenate(rows).argmax(1) if codes else np.concatenate(rows)
    return tokens, frames


@proves("abx", "mechanism", "rule")
@pytest.mark.parametrize("mode", ["within", "across"])
@pytest.mark.parametrize("distance", sorted(DISTANCES))
def test_errors_are_those_of_every_triplet_taken_by_hand(mode, distance):
    tokens, frames = made_up(3, codes=distance == "identical")
    for rules in ("corrected", "librilight"):
        found = abx(tokens, frames, 50.0, mode, distance, rules, largest_group=None, most_speakers=None)
        expected = slow_abx(tokens, frames, 50.0, mode, distance, rules)
        assert found.error() == pytest.approx(expected, abs=2e-6), (rules, found.triplets)
        assert 0.005 < expected < 0.6


def test_any_context_takes_tokens_of_all_contexts_together():
    tokens, frames = made_up(4)
    anywhere = abx(tokens, frames, 50.0, context="any", largest_group=None)
    plain = [Token(t.file, t.onset, t.offset, t.phone, "-", "-", t.speaker) for t in tokens]
    assert anywhere.error() == abx(plain, frames, 50.0, largest_group=None).error()
    assert anywhere.error() != abx(tokens, frames, 50.0, largest_group=None).error()


def test_sampling_is_by_pythons_random_in_libri_lights_order():
    tokens, frames = made_up(5, speakers=4, each=6, contexts=1)
    groups = _Groups(tokens, frames, 50.0, "corrected", "within", "angular")
    first = next(groups.within(random.Random(9), 4))
    chance = random.Random(9)
    a, b = groups.tree[0][0][0], groups.tree[0][0][1]
    assert list(first.b) == chance.sample(b, k=4), "B is drawn before A"
    assert list(first.a) == chance.sample(a, k=4)
    some = next(groups.across(random.Random(9), None, 2))
    assert len(some.x) == 6
    one, two = (abx(tokens, frames, 50.0, "across", largest_group=3, most_speakers=2, seed=s).error() for s in (1, 1))
    assert one == two != abx(tokens, frames, 50.0, "across", largest_group=3, most_speakers=2, seed=2).error()


def test_frames_that_tell_nothing_are_at_chance_and_perfect_ones_at_zero():
    tokens, frames = made_up(6)
    flat = {name: np.ones_like(value) for name, value in frames.items()}
    assert abx(tokens, flat, 50.0).error() == 0.5
    codes = {f"f{s}": np.concatenate([np.full(round((t.offset - t.onset) * 50), int(t.phone[1]))
                                      for t in tokens if t.file == f"f{s}"]) for s in range(3)}  # fmt: skip
    for mode in ("within", "across"):
        table = abx(tokens, codes, 50.0, mode, "identical")
        assert table.error() == 0.0 and table.values.shape == (3, 3, 3)


@pytest.mark.parametrize("wrong", [{"mode": "beside"}, {"distance": "taxi"}, {"rules": "mine"}, {"context": "none"}])
def test_wrong_wishes_are_refused(wrong):
    tokens, frames = made_up(1)
    with pytest.raises(RequestError, match="abx"):
        abx(tokens, frames, 50.0, **wrong)


def test_frames_that_do_not_fit_the_distance_are_refused():
    tokens, frames = made_up(1)
    with pytest.raises(RequestError, match="codes"):
        abx(tokens, frames, 50.0, distance="identical")
    with pytest.raises(RequestError, match="negative"):
        abx(tokens, {k: v - 9 for k, v in frames.items()}, 50.0, distance="kl")
    with pytest.raises(RequestError, match="frames"):
        abx(tokens, {k: v[:, 0] for k, v in frames.items()}, 50.0)

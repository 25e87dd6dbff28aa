"""Log-probabilities: equal to their definition, in any batch, with windows beyond the context."""

import pytest
import torch

from vivavoce.errors import RequestError
from vivavoce.layouts import StreamSpec, build_layout
from vivavoce.lm.decoder import Decoder
from vivavoce.lm.grid import GridLM
from vivavoce.lm.logprob import score_predictions, score_text, token_logprobs
from vivavoce.lm.packed import WHOLE
from vivavoce.lm.text_lm import TextLM
from vivavoce.nn.transformer import TransformerConfig


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    lm = TextLM(TransformerConfig(2, 32, 4), 40).eval()
    torch.nn.init.normal_(lm.head.weight, std=0.5)
    return lm


def by_hand(model, ids, start, end):
    """Sum of ln p(ids[t] | ids[start:t]) for t in [start + 1, end), one prefix at a time."""
    total = 0.0
    for t in range(start + 1, end):
        total += float(model(ids[None, start:t])[0, -1].log_softmax(-1)[ids[t]])
    return total


def test_rows_of_any_length_equal_their_definition_and_each_other(model):
    ids, lengths = torch.randint(0, 40, (4, 19)), torch.tensor([19, 7, 1, 0])
    with torch.no_grad():
        score = score_text(model, ids, lengths)
        assert score.sums.dtype == torch.float64
        assert score.counts.tolist() == [18, 6, 0, 0]
        for b, n in enumerate(lengths.tolist()):
            assert abs(float(score.sums[b]) - by_hand(model, ids[b], 0, n)) < 1e-4 * max(n, 1)
            alone = score_text(model, ids[b : b + 1, :n], lengths[b : b + 1])
            assert abs(float(score.sums[b] - alone.sums[0])) < 1e-4 * max(n, 1)


def test_windows_beyond_the_context_score_every_id_once(model):
    ids, lengths = torch.randint(0, 40, (3, 23)), torch.tensor([23, 14, 6])
    with torch.no_grad():
        score = score_text(model, ids, lengths, context=8, stride=3)
        assert score.counts.tolist() == [22, 13, 5]
        assert score.windows.tolist() == [6, 3, 1]
        row = ids[0]
        expected = by_hand(model, row, 0, 8)
        for start in (3, 6, 9, 12, 15):
            expected += by_hand(model, row, start, min(start + 8, 23)) - by_hand(model, row, start, start + 5)
        assert abs(float(score.sums[0]) - expected) < 2e-3
        alone = score_text(model, ids[1:2, :14], lengths[1:2], context=8, stride=3)
        assert abs(float(score.sums[1] - alone.sums[0])) < 1e-4 * 13
    with pytest.raises(RequestError, match="windows"):
        score_text(model, ids, lengths, context=8, stride=9)


def test_only_what_is_asked_counts_over_the_vocabulary_that_is_asked(model):
    ids, lengths = torch.randint(0, 20, (2, 9)), torch.tensor([9, 5])
    scored = torch.rand(2, 9) < 0.5
    own = torch.arange(40) < 20
    with torch.no_grad():
        score = score_text(model, ids, lengths, scored, allowed=own)
        logits = model(ids)[..., :20].log_softmax(-1)
    for b, n in enumerate(lengths.tolist()):
        hits = [t for t in range(1, n) if scored[b, t]]
        assert int(score.counts[b]) == len(hits)
        assert abs(float(score.sums[b]) - sum(float(logits[b, t - 1, ids[b, t]]) for t in hits)) < 1e-4 * n


def test_grids_score_each_slot():
    torch.manual_seed(6)
    layout = build_layout({"kind": "delay"}, [StreamSpec("voice", 2, 50)])
    model = GridLM(
        Decoder(TransformerConfig(1, 16, 2)), layout, {"voice": [5, 6]}, {"voice": {"kind": "linear"}}
    ).eval()  # fmt: skip
    values, lengths = {"voice": torch.randint(0, 5, (2, 2, 7))}, {"voice": torch.tensor([7, 4])}
    with torch.no_grad():
        score = score_predictions(model(layout.place(lengths), values), 2)["voice"]
        assert score.counts.tolist() == [[7, 7], [4, 4]]
        alone = {"voice": values["voice"][1:, :, :4]}
        one = score_predictions(model(layout.place({"voice": torch.tensor([4])}), alone), 1)["voice"]
        read = model.read(layout.place(lengths), values, pack=WHOLE)
        picked = {"voice": model.predict("voice", read, read.loss["voice"].any(-1))}
        packed = score_predictions(picked, 2)["voice"]
    assert torch.equal(packed.counts, score.counts)
    torch.testing.assert_close(packed.sums, score.sums, atol=1e-4, rtol=0)
    torch.testing.assert_close(score.sums[1:], one.sums, atol=1e-4, rtol=0)
    assert bool((score.means < 0).all())


def test_a_negative_id_scores_nothing():
    assert token_logprobs(torch.randn(3, 5), torch.tensor([-1, -1, -1])).tolist() == [0, 0, 0]

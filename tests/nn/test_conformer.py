"""The conformer: padding is not heard in any form, causal ones hear no future, positions do what they say."""

import pytest
import torch

from vivavoce.errors import RecipeError
from vivavoce.nn.conformer import Conformer, ConformerConfig, FrameBatchNorm, by_offset, offset_vectors

FORMS = {
    "paper": {},
    "w2v-BERT 2.0": {"positions": "relative_key", "conv_causal": True, "conv_norm": "layer", "most_left": 3,
                     "most_right": 2},
    "rotations": {"positions": "rope_before", "conv_norm": "layer", "conv_bias": True},
    "queries turned": {"positions": "rope"},
    "causal": {"causal": True, "conv_causal": True, "context": 6, "conv_norm": "layer", "kernel": 4},
    "without positions": {"positions": "none", "activation": "gelu"},
}


def build(**options):
    torch.manual_seed(1)
    model = Conformer(ConformerConfig(**{"layers": 2, "width": 16, "heads": 2, "kernel": 5, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.add_(0.3 * torch.rand_like(buffer))
    return model


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_padded_row_gives_what_it_gives_alone(form):
    model = build(**FORMS[form]).eval()
    lengths = torch.tensor([23, 9, 1, 0])
    x = torch.randn(4, 23, 16)
    padded = x.clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = torch.nan
    both = model(padded, lengths, layer="all")
    assert both.shape == (4, 3, 23, 16) and both[:3, :, :1].isfinite().all()
    for row, length in enumerate(lengths.tolist()):
        alone = model(x[row : row + 1, :length], layer="all")
        assert torch.allclose(both[row, :, :length], alone[0], atol=1e-5)
    assert torch.allclose(model(x, layer=1), model(x, layer="all")[:, 1])


@pytest.mark.parametrize("form", ["paper", "causal"])
def test_training_hears_no_padding_either(form):
    """Outputs, gradients and running statistics of padded rows are those of the same frames with more padding."""
    lengths = torch.tensor([9, 5])
    x = torch.randn(2, 9, 16)
    found = []
    for extra in (0, 7):
        model = build(**FORMS[form]).train()
        padded = torch.nn.functional.pad(x, (0, 0, 0, extra), value=5.0)
        y = model(padded, lengths)
        sum(y[row, :length].square().sum() for row, length in enumerate(lengths)).backward()
        found.append([y[0, :9], y[1, :5], *(p.grad for p in model.parameters()), *model.buffers()])
    for one, other in zip(*found):
        assert torch.allclose(one.float(), other.float(), atol=1e-4)


@torch.no_grad()
def test_a_causal_one_hears_no_future_and_the_paper_s_does():
    x = torch.randn(1, 20, 16)
    changed = x.clone()
    changed[:, 12:] = 0
    causal, paper = build(**FORMS["causal"]).eval(), build().eval()
    assert torch.allclose(causal(x)[:, :12], causal(changed)[:, :12], atol=1e-6)
    assert (paper(x)[:, :12] - paper(changed)[:, :12]).abs().max() > 1e-3


@torch.no_grad()
def test_a_mask_of_chunks():
    """With centred kernels of one frame, chunks that do not see one another are as if alone."""
    model = build(kernel=1, positions="relative").eval()
    x = torch.randn(1, 12, 16)
    chunk = torch.arange(12) // 4
    masked = model(x, mask=(chunk[:, None] == chunk)[None])
    alone = torch.cat([model(part) for part in x.split(4, dim=1)], dim=1)
    assert torch.allclose(masked, alone, atol=1e-5)


def test_offsets_stand_where_the_formula_has_them():
    vectors = offset_vectors(5, 6, torch.zeros(()))
    assert vectors.shape == (9, 6)
    assert torch.allclose(vectors[4], torch.tensor([0.0, 1, 0, 1, 0, 1]))
    assert torch.allclose(vectors[3, 0], torch.sin(torch.tensor(1.0)))  # the key stands one frame before the query
    scores = torch.arange(4.0, -5, -1).expand(2, 3, 5, 9)
    at = torch.arange(5.0)
    assert torch.equal(by_offset(scores)[1, 2], at[:, None] - at)


def test_batch_norm_counts_frames():
    x, lengths = torch.randn(2, 6, 3), torch.tensor([6, 2])
    ours, torchs = FrameBatchNorm(3).train(), torch.nn.BatchNorm1d(3).train()
    frames = torch.cat([x[0], x[1, :2]])
    expected = torchs(frames)
    found = ours(x, lengths)
    assert torch.allclose(torch.cat([found[0], found[1, :2]]), expected, atol=1e-6)
    assert torch.allclose(ours.running_var, torchs.running_var)
    assert not FrameBatchNorm(3).train()(x[:1], torch.tensor([1])).any(), "one frame has no variance"


def test_what_cannot_be_is_refused():
    for options, message in (({"kernel": 4}, "odd"), ({"heads": 3}, "multiple"), ({"positions": "alibi"}, "none of"),
                             ({"layers": 0}, "at least 1"), ({"conv_norm": "group"}, "none of")):  # fmt: skip
        with pytest.raises(RecipeError, match=message):
            ConformerConfig(**{"layers": 1, "width": 16, "heads": 2, **options})
    with pytest.raises(RecipeError, match="'kernels' is unknown"):
        ConformerConfig.of({"layers": 1, "width": 16, "heads": 2, "kernels": 3})
    with pytest.raises(RecipeError, match="'heads' is missing"):
        ConformerConfig.of({"layers": 1, "width": 16})

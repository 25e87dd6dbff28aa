"""Encoders that are parts of a larger one: LightHuBERT's, as its authors' code counts and cuts them."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from proves import proves
from vivavoce.encoders.registry import build_encoder
from vivavoce.encoders.speech_transformer import SpeechTransformer, SpeechTransformerConfig
from vivavoce.encoders.subnets import Sizes, Space, cut, kept_blocks, kept_units, parameter_count
from vivavoce.encoders.subnets_weights import load_supernet
from vivavoce.encoders.units import UnitTokenizer
from vivavoce.errors import CheckpointError, RecipeError, RequestError

BASE = Space((512, 640, 768), (12,), (8, 10, 12), (3.5, 4.0))
LITTLE = Space((256, 384, 512), (10, 11, 12), (4, 6, 8), (3.0, 3.5, 4.0))
SMALL = {
    "conv_widths": [16, 16], "conv_kernels": [10, 8], "conv_strides": [10, 8], "width": 32, "layers": 4, "heads": 4,
    "hidden": 96, "position_kernel": 6, "position_groups": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    torch.manual_seed(0)
    encoder = build_encoder({"kind": "lighthubert", **SMALL})
    for parameter in encoder.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return encoder


@proves("lighthubert", "mechanism")
def test_subnets_are_as_many_and_as_large_as_the_authors_say():
    """What their tutorial prints: numbers of subnets, and millions of parameters of the ends and of two drawn ones."""
    assert (BASE.count, LITTLE.count) == (6_530_347_008, 951_892_141_473)
    with torch.device("meta"):
        model = SpeechTransformer(SpeechTransformerConfig(front_norm="layer"))
    model.requires_grad_(False)
    one = Sizes(768, (12, 12, 10, 8, 8, 10, 8, 10, 8, 8, 12, 12),
                (3072, 2688, 3072, 2688, 2688, 3072, 3072, 3072, 3072, 2688, 3072, 3072))  # fmt: skip
    other = Sizes(512, (8, 4, 6, 8, 4, 4, 6, 4, 6, 8, 4, 4),
                  (2048, 2048, 1792, 2048, 1536, 1536, 1792, 1536, 1792, 1792, 2048, 1792))  # fmt: skip
    said = {BASE.smallest: 41, BASE.largest: 94, LITTLE.smallest: 11, LITTLE.largest: 44, one: 87, other: 38}
    for sizes, millions in said.items():
        assert round(parameter_count(model, sizes) / 1e6) == millions, sizes
    for seed in range(20):
        for space in (BASE, LITTLE):
            drawn = space.draw(seed)
            assert drawn == space.draw(seed) and drawn.width in space.width and len(drawn.heads) in space.layers
            assert set(drawn.heads) <= set(space.heads)
            assert {hidden / drawn.width for hidden in drawn.hidden} <= set(space.ratio)


def test_which_blocks_and_units_stay():
    """Their table of depths, and their splits of the feed-forward layer."""
    gone = {11: [11], 10: [7, 11], 9: [3, 7, 11], 8: [3, 7, 10, 11], 7: [3, 6, 7, 10, 11], 6: [2, 3, 6, 7, 10, 11]}
    for depth, missing in gone.items():
        assert kept_blocks(12, depth) == [block for block in range(12) if block not in missing]
    assert [kept_blocks(2, depth) for depth in (1, 2)] == [[0], [0, 1]]
    found = kept_units(SpeechTransformerConfig(), 640, 2240).tolist()
    assert found == [*range(640), *range(768, 1408), *range(1536, 2176), *range(2304, 2624)]


@proves("lighthubert", "mechanism")
@torch.no_grad()
def test_a_part_computes_with_the_first_of_everything(whole):
    """Written out: blocks 0 and 3 of 4, 16 of 32 dimensions, heads of 8, the first units of each group."""
    part = cut(whole, Sizes.of(16, 3, [1, 4, 2], [1.5, 3.0, 2.0]))
    wave, length = torch.randn(1, 2000) * 0.1, torch.tensor([2000])
    frames, _ = whole.local(wave, length)
    x = F.linear(whole.local_norm(frames), whole.projection.weight[:16], whole.projection.bias[:16])
    kernel, bias = whole.position.weight[:16, :8], whole.position.bias[:16]
    x = x + F.gelu(F.conv1d(x.transpose(1, 2), kernel, bias, padding=3, groups=2)[..., : x.shape[1]].transpose(1, 2))
    x = F.layer_norm(x, (16,), whole.norm.weight[:16], whole.norm.bias[:16])
    units = ([*range(16), *range(32, 40)], [*range(16), *range(32, 48), *range(64, 80)], [*range(16), *range(32, 48)])
    for number, heads, kept in zip((0, 1, 2), (1, 4, 2), units, strict=True):
        block, size = whole.blocks[number], 8 * heads
        q, k, v = (F.linear(x, layer.weight[:size, :16], layer.bias[:size]).unflatten(-1, (heads, 8)).transpose(1, 2)
                   for layer in (block.query, block.key, block.value))  # fmt: skip
        y = ((q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        y = x + F.linear(y, block.output.weight[:16, :size], block.output.bias[:16])
        x = F.layer_norm(y, (16,), block.attention_norm.weight[:16], block.attention_norm.bias[:16])
        y = F.gelu(F.linear(x, block.widen.weight[kept][:, :16], block.widen.bias[kept]))
        y = x + F.linear(y, block.narrow.weight[:16][:, kept], block.narrow.bias[:16])
        x = F.layer_norm(y, (16,), block.feedforward_norm.weight[:16], block.feedforward_norm.bias[:16])
    torch.testing.assert_close(part(wave, length), x, rtol=1e-4, atol=1e-5)
    same = cut(whole, Sizes.of(32, 4, 4, 3.0))
    torch.testing.assert_close(same(wave, length, "all"), whole(wave, length, "all"))


def test_a_part_is_an_encoder_by_itself(whole, tmp_path):
    """Batches are their rows; units of it are saved and come back without the whole."""
    part = cut(whole, Sizes.of(16, 3, [1, 4, 2], [1.5, 3.0, 2.0]))
    waves = [0.1 * torch.randn(size) for size in (4000, 1700, 90)]
    batch = part.features(waves, layer="all")
    for row, wave in enumerate(waves):
        alone = part.features([wave], layer="all")
        count = int(alone.lengths[0])
        torch.testing.assert_close(batch.values[row, :, :count], alone.values[0], rtol=1e-4, atol=1e-4)
    units = UnitTokenizer.fit(part, waves, 4, 2, {"kind": "lighthubert"})
    units.save(tmp_path)
    again = UnitTokenizer.load(tmp_path)
    assert again.encoder.config == part.config and torch.equal(again.encode(waves), units.encode(waves))


def test_what_is_no_part_is_refused(whole):
    for sizes, message in (
        (Sizes.of(48, 4, 4, 2.0), "width 48"),
        (Sizes.of(15, 4, 4, 2.0), "position_groups"),
        (Sizes.of(32, 5, 4, 2.0), "5 layers"),
        (Sizes.of(32, 4, 5, 2.0), "heads"),
        (Sizes.of(32, 4, 4, 4.0), "units"),
    ):
        with pytest.raises(RecipeError, match=message):
            cut(whole, sizes)
    with pytest.raises(RecipeError, match="one for each"):
        Sizes.of(32, 4, [1, 2], 2.0)


@torch.no_grad()
@pytest.mark.parametrize("stack", [0, 2])
def test_a_published_file_is_read(stack, tmp_path):
    """As the authors name its tensors and settings, its position's convolution as a direction and lengths."""
    torch.manual_seed(1)
    ours = build_encoder({"kind": "lighthubert", **SMALL, "front_norm": "layer", "position_layers": stack,
                          "position_kernel": 3 if stack else 6})  # fmt: skip
    state = {}
    for name, value in ours.state_dict().items():
        value.add_(0.05 * torch.randn_like(value))
        part, _, rest = name.partition(".")
        if part == "front":
            number, kind, leaf = rest.split(".")
            state[f"feature_extractor.conv_layers.{number}.{'0' if kind == 'conv' else '2.1'}.{leaf}"] = value
        elif part == "position":
            state[f"encoder.pos_conv.{rest.replace('.', '.0.', 1) if stack else f'0.{rest}'}"] = value
        elif part == "blocks":
            number, inside, leaf = rest.split(".")
            told = {"output": "self_attn.out_proj", "attention_norm": "self_attn_layer_norm", "widen": "fc1",
                    "narrow": "fc2", "feedforward_norm": "final_layer_norm"}  # fmt: skip
            state[f"encoder.layers.{number}.{told.get(inside, f'self_attn.{inside[0]}_proj')}.{leaf}"] = value
        else:
            told = {"front_norm": "layer_norm", "projection": "post_extract_proj", "norm": "encoder.layer_norm"}
            state[f"{told[part]}.{rest}"] = value
    if not stack:
        place = "encoder.pos_conv.0.weight"
        direction = state.pop(place)
        state |= {f"{place}_v": 3 * direction, f"{place}_g": direction.flatten(0, 1).norm(dim=0).view(1, 1, -1)}
    state |= {"mask_emb": torch.zeros(32), "layer_pred_heads.3.weight": torch.zeros(32, 32),
              "final_proj.weight": torch.zeros(2, 2), "label_embs_concat": torch.zeros(3)}  # fmt: skip
    model = {"conv_feature_layers": "[(16, 10, 10)] + [(16, 8, 8)]", "encoder_embed_dim": 32, "encoder_layers": 4,
             "encoder_attention_heads": 4, "encoder_ffn_embed_dim": 96, "conv_pos": 6, "conv_pos_groups": 2,
             "pos_conv_depth": max(stack, 1), "extractor_mode": "layer_norm", "activation_fn": "gelu"}  # fmt: skip
    torch.save({"cfg": {"model": model, "task": {"normalize": True}}, "model": state}, tmp_path / "light.pt")
    ours.config = dataclasses.replace(ours.config, normalize=True)
    wave = [torch.randn(1500)]
    read = load_supernet(tmp_path / "light.pt", allow_pickle=True)
    torch.testing.assert_close(read.features(wave).values, ours.features(wave).values, rtol=1e-4, atol=1e-5)
    said = {"width": 16, "layers": 3, "heads": 2, "ratio": 2.0}
    source = {"source": str(tmp_path / "light.pt"), "allow_pickle": True}
    part = build_encoder({"kind": "lighthubert", **source, "subnet": said})
    torch.testing.assert_close(part.features(wave).values, cut(ours, Sizes.of(**said)).features(wave).values)
    torch.save({"model": state}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no checkpoint of LightHuBERT"):
        load_supernet(tmp_path / "other.pt", allow_pickle=True)
    with pytest.raises(CheckpointError, match="allow_pickle"):
        load_supernet(tmp_path / "light.pt")
    with pytest.raises(RequestError, match="is no file"):
        load_supernet(tmp_path / "none.pt", allow_pickle=True)

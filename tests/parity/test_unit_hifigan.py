"""Our unit HiFi-GAN with the weights of the references' code vocoders: same durations, same waveform."""

import json

import pytest
import torch
import transformers
from transformers.models.seamless_m4t.modeling_seamless_m4t import SeamlessM4TCodeHifiGan
from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2CodeHifiGan

from proves import proves
from vivavoce.errors import CheckpointError
from vivavoce.vocoders.checkpoints import from_resynthesis, generator_names, load_unit_vocoder

SIZES = dict(
    unit_hifi_gan_vocab_size=120, unit_embed_dim=48, lang_embed_dim=16, spkr_embed_dim=24, upsample_initial_channel=64,
    vocoder_num_langs=4, vocoder_num_spkrs=5,
)
VERSIONS = {
    1: (transformers.SeamlessM4TConfig, SeamlessM4TCodeHifiGan),
    2: (transformers.SeamlessM4Tv2Config, SeamlessM4Tv2CodeHifiGan),
}


def reference(version, **changes):
    """Random weights at which the waveform is neither silent nor clipped, and durations vary."""
    config_class, model_class = VERSIONS[version]
    model = model_class(config_class(**{**SIZES, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("hifi_gan") and parameter.dim() == 3:
                fan = parameter.shape[1] * parameter.shape[2]
                if "upsampler" in name:
                    stage = int(name.split(".")[2])
                    fan = parameter.shape[0] * parameter.shape[2] / model.config.upsample_rates[stage]
                parameter.normal_(std=(0.5 if "resblocks" in name else 1.2) / fan**0.5)
            elif name.startswith("dur_predictor") or parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        logs = model.dur_predictor(model.unit_embedding(torch.randint(5, 120, (1, 200))))
        model.dur_predictor.proj.weight.mul_(0.5 / logs.std())
        model.dur_predictor.proj.bias.fill_(1.2 - (logs - model.dur_predictor.proj.bias).mean() * 0.5 / logs.std())
    return model


def durations_of(model, units):
    with torch.no_grad():
        logs = model.dur_predictor(model.unit_embedding(units))
    return torch.clamp(torch.round(torch.expm1(logs)).long(), min=1)


@proves("unit-hifigan", "weights")
@pytest.mark.parametrize("version", [1, 2])
def test_seamless_code_vocoder(version, tmp_path):
    model = reference(version)
    model.save_pretrained(tmp_path)
    ours = load_unit_vocoder(tmp_path)
    for count, speaker, language in ((1, 0, 0), (10, 3, 2)):
        units = torch.randint(5, 120, (1, count))
        with torch.no_grad():
            theirs, lengths = model(units, torch.tensor([[speaker]]), torch.tensor([[language]]))
            wave, total = ours(units, speaker=torch.tensor([speaker]), language=torch.tensor([language]))
        durations = durations_of(model, units)
        assert total.item() == wave.shape[2] == 320 * durations.sum() == int(lengths)
        if count > 1:
            assert len(durations.unique()) > 3 and 0.01 < theirs.std() < 0.9
        assert (wave[0, 0] - theirs[0]).abs().max() < 1e-4 * theirs.std()


def test_a_batch_is_its_rows(tmp_path):
    """The reference lets padding into a batch; ours does not: every row is the reference's single row."""
    model = reference(1)
    model.save_pretrained(tmp_path)
    ours = load_unit_vocoder(tmp_path)
    units, lengths = torch.randint(5, 120, (3, 6)), torch.tensor([6, 3, 1])
    speakers, languages = torch.tensor([0, 4, 2]), torch.tensor([3, 0, 1])
    with torch.no_grad():
        wave, total = ours(units, lengths, speaker=speakers, language=languages)
        for row, count in enumerate(lengths):
            theirs, _ = model(units[row : row + 1, :count], speakers[row].view(1, 1), languages[row].view(1, 1))
            assert total[row] == theirs.shape[1]
            assert (wave[row, 0, : total[row]] - theirs[0]).abs().max() < 1e-4 * theirs.std()
            assert not wave[row, 0, total[row] :].any()


def renamed_for_resynthesis(model, ours):
    """The same weights under speech-resynthesis's names, with weight norm, as its checkpoints store them."""
    state = {}
    names = dict(zip(generator_names(ours.generator, "upsampler"), generator_names(ours.generator, "ups")))
    for key, value in model.state_dict().items():
        if key.startswith("hifi_gan."):
            stem, leaf = key.removeprefix("hifi_gan.").rsplit(".", 1)
            if leaf == "weight":
                scale = 0.5 + torch.rand(value.shape[0], 1, 1)
                state[f"{names[stem]}.weight_v"] = value * scale
                state[f"{names[stem]}.weight_g"] = value.flatten(1).norm(dim=1).view(-1, 1, 1)
            else:
                state[f"{names[stem]}.{leaf}"] = value
        elif key.startswith("dur_predictor.conv"):
            state[key.replace("conv1.", "conv1.0.").replace("conv2.", "conv2.0.")] = value
        elif key.startswith("dur_predictor"):
            state[key] = value
    state["dict.weight"] = model.unit_embedding.weight
    state["spkr.weight"] = model.speaker_embedding.weight
    return {key: value.detach().clone() for key, value in state.items()}


RESYNTHESIS = {
    "resblock_kernel_sizes": [3, 7, 11], "resblock_dilation_sizes": [[1, 3, 5]] * 3, "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4], "upsample_initial_channel": 64, "num_embeddings": 120,
    "embedding_dim": 48, "model_in_dim": 96, "multispkr": "_", "num_speakers": 5, "sampling_rate": 16000,
    "dur_predictor_params": {
        "encoder_embed_dim": 48, "var_pred_hidden_dim": 48, "var_pred_kernel_size": 3, "var_pred_dropout": 0.5,
    },
}


def test_speech_resynthesis_checkpoint(tmp_path):
    """SeamlessM4T's vocoder without a language is speech-resynthesis's with a speaker: one forward, other names."""
    model = reference(1, lang_embed_dim=0, spkr_embed_dim=48)
    model.save_pretrained(tmp_path / "seamless")
    state = renamed_for_resynthesis(model, load_unit_vocoder(tmp_path / "seamless"))
    folder = tmp_path / "resynthesis"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(RESYNTHESIS))
    torch.save({"generator": state}, folder / "g_00400000")
    with pytest.raises(CheckpointError, match="allow_pickle"):
        load_unit_vocoder(folder)
    ours = load_unit_vocoder(folder, allow_pickle=True)
    units = torch.randint(5, 120, (1, 6))
    with torch.no_grad():
        theirs, _ = model(units, torch.tensor([[2]]), torch.tensor([[0]]))
        wave, _ = ours(units, speaker=torch.tensor([2]))
    assert (wave[0, 0] - theirs[0]).abs().max() < 1e-4 * theirs.std()


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    reference(1).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"unit_embed_dim": 40}, "by its configuration"), ({"upsample_rates": [5, 4, 4, 2, 2, 2],
         "upsample_kernel_sizes": [11, 8, 8, 4, 4, 4]}, "is missing"), ({"model_type": "bert"}, "neither"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            load_unit_vocoder(tmp_path)
    with pytest.raises(CheckpointError, match="pitch"):
        from_resynthesis({**RESYNTHESIS, "f0": True}, {})
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_unit_vocoder(tmp_path / "nowhere")

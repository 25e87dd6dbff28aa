"""Random SSL encoders in transformers' format in which every weight counts, and how ours are compared with them."""

import json

import torch


def published(model, directory, preprocessor=None):
    """Write `model` where every parameter and every running statistic has left its first value."""
    model = model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if "running_" in name:
                buffer.add_(0.3 * torch.rand_like(buffer))
    model.save_pretrained(directory)
    if preprocessor is not None:
        (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return model


def agree(ours, theirs, tolerance=1e-4):
    """Both [layers, T, D]: as near as rounding, measured by the layer's spread; frames of a layer must differ."""
    assert ours.shape == theirs.shape
    for mine, other in zip(ours, theirs):
        assert (mine - other).abs().max() < tolerance * other.std()
    if theirs.shape[1] > 1:
        assert theirs[0].std(dim=0).mean() > 0.05, "frames must differ for the comparison to mean anything"

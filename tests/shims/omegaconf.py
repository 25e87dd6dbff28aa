"""Three names of omegaconf, by which S3PRL's copies of fairseq's models write their settings."""

from contextlib import nullcontext

MISSING = "???"


def II(name):
    """What would be looked up elsewhere."""
    return MISSING


def open_dict(config):
    return nullcontext(config)

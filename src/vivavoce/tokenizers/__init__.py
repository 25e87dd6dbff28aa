"""Tokenizers: one interface over codecs and text. `load_tokenizer` opens a trained one, ours or other people's."""

from vivavoce.tokenizers.load import load_tokenizer
from vivavoce.tokenizers.words import WordVocabulary

__all__ = ["WordVocabulary", "load_tokenizer"]

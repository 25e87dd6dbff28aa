"""Corpora in, synthetic corpora, augmentation, token stores, packing and batching."""

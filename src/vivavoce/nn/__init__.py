"""Streaming layers with explicit state; import them from their files, as `vivavoce.nn.convolution`."""

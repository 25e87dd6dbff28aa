"""Language models over columns of a grid: backbone, heads, sampling, decoding."""

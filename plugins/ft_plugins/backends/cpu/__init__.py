"""The CPU's kernels: blocked attention, tiles of the vocabulary, products by MKL or oneDNN, fused layers."""

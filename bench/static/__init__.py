"""Speed of the GPU kernels without a GPU: what they compile to, compared with a committed baseline, and predictions."""

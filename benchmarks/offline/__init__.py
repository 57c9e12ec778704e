"""What is found without a GPU: how the kernels compile, and what `fuse` finds in a model."""

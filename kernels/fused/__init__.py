"""Triton kernels, one op per file; imported by ``dispatch`` when an op first needs them."""

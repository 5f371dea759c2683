"""Triton kernels, one op per file, imported by ``dispatch`` when an op first needs them.

What runs without Triton does not belong here (``reference``, ``composed``).
"""

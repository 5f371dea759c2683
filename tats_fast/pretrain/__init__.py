"""Pretraining of autoencoder and sampler in the engine's loop: the algorithm, step by step.

Its networks, masks and rewards are in ``models``, ``masking`` and ``rl``.
"""

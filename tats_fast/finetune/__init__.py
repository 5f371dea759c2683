"""Fine-tuning of an encoder with a linear head on labelled videos, in the engine's loop.

What a finished classifier is worth is measured in ``recognition``.
"""

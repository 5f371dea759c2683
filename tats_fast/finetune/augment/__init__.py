"""Augmentation of labelled clips on their device: RandAugment, erasing, mixing.

How a clip is cut from its video belongs to ``data``.
"""

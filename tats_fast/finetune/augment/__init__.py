"""Augmentation of labelled clips on the device."""

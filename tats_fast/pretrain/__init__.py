"""Pretraining: the steps of TATS in the engine's loop."""

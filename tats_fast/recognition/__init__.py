"""What an encoder or a classifier recognises: features, probes, multi-view scores, accuracies.

Nothing here trains the encoder; that is fine-tuning.
"""

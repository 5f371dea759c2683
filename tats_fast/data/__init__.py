"""From video files to batches of clips: lists, order, decoding, worker processes.

Not here: labels of a task, losses, models, or what prepares files before training (``prepare``).
"""

"""Work on a data set before training: checking files, reading official lists, smaller copies.

Not here: what training itself reads (``data``).
"""

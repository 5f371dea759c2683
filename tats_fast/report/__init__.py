"""Pages and pictures of one checkpoint: what its model and its sampler do with some videos.

Nothing is trained or measured here beyond that: the curves of a page come from the run's logs.
"""

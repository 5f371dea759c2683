"""Work on a data set before training: checking files, lists, smaller copies."""

"""Training: step, loop, optimizer, processes, checkpoints, metrics."""

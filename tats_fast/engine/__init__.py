"""Any training: loop, checkpoints, logs, optimizers, several processes.

No model, loss or masking strategy belongs here: what is trained subclasses ``TrainingLoop``.
"""

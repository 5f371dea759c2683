"""Fine-tuning: an encoder and a linear head on labelled videos, in the engine's training loop."""

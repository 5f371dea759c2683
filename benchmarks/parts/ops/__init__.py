"""Parts of ops.py and tune_kernels.py: cases, gate, timing and text; no command line."""

"""Parts of gpu_suite.py: its sections and its record; no measurement of their own."""

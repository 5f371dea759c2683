"""Parts of throughput.py and profile_step.py: paths, clips, stages and text; no command line."""

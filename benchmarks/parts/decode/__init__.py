"""Parts of decode.py: cases, decoders, training runs and text; no command line."""

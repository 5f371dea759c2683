"""The package's version, in one place (read by setup.py as text)."""

__version__ = "0.1.0"

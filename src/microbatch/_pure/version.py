"""The version, once; a test compares it with the package's metadata."""

__version__ = "0.2.0"

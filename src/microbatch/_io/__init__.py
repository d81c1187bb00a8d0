"""Rows of files and items of streams, in and out."""

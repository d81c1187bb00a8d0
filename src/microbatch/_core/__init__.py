"""The batcher: from a submitted item to its outcome."""

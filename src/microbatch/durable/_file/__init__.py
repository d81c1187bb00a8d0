"""The queue's file: what stands in it, who writes it, who reads it."""

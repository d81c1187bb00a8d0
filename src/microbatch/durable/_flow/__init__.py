"""An item's way: from a caller to the disk, to the handler, to the disk, to the caller."""

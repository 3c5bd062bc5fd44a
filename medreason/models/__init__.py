"""Models: loading (weights, processor, adapter), folders on disk, and the tiny model."""

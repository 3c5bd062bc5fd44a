"""Models: loading (weights, processor, adapter) and the tiny model that ships with the package."""

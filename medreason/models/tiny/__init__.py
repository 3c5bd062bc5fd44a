"""The tiny model that ships with the package: its weights, and the code that rebuilds them."""

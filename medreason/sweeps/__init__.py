"""Sweeps of Hydra: their jobs, and the outcome of each."""

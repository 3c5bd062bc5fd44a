"""The run folder: keys, state, locks, files that are whole. No torch."""

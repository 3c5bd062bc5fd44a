"""The run folder: keys, state, locks, atomic writes. No torch."""

"""Sweeps as Hydra sees them: the jobs, and what each came to."""

"""Runs: keys, folders, the worker process and what starts it."""

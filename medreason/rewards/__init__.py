"""Scores of one reply to one sample, and how much they tell completions apart. No torch."""

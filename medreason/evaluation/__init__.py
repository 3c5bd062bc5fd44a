"""Evaluation: answers to the test questions, and what they are worth."""

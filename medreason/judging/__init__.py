"""LLM-as-judge: verdicts on reasoning and answers, cached on disk."""

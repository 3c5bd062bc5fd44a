"""LLM-as-judge: grades of reasoning and answers, each asked for once and kept."""

"""Grouped GRPO against stock TRL, memory against its estimate, the roofline of a machine."""

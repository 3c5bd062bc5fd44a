"""Post-training: SFT and GRPO on TRL's trainers."""

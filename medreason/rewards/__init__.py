"""Scores of one reply to one sample: `score(reply, sample, *, settings) -> float`. No torch.

`conf/reward/` names the scores of `answer`, `format`, `reasoning`, `length` and `embeddings`;
`words` compares texts; `variance` finds rewards that have collapsed.
"""

"""A rollout engine of one file: greedy decoding with a key-value cache."""

from __future__ import annotations

from gkd_core.api import Prompts, RolloutEngine, Writer, Written, hookimpl, most_likely


class Greedy(RolloutEngine):
    """Writes the most likely token, again and again."""

    name = "greedy"

    def write(self, prompts: Prompts, writer: Writer) -> Written:
        """Decode until every row of every rank has ended."""
        texts: list[list[int]] = [[] for _ in prompts.rows]
        decoding = writer.start(prompts)
        while True:
            tokens = most_likely(decoding.logits)
            for text, token in zip(texts, tokens.tolist(), strict=True):
                text.append(token)
            ended = all(set(prompts.end_ids) & set(text) for text in texts)
            full = len(texts[0]) == prompts.max_new_tokens
            if full or not writer.any_rank(not ended):
                return Written(texts)
            decoding.append(tokens)


@hookimpl
def gkd_register_rollouts() -> list[type[RolloutEngine]]:
    """Register the engine."""
    return [Greedy]

"""What a trained family is judged by: right commands, facts, endings, perplexity, acceptance. Values in, values out."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hsd.builtin import questions, tokenizer
from hsd.builtin.conversation import Conversation
from hsd.builtin.loop import mean_loss
from hsd.builtin.replies import answer
from hsd.builtin.stream import padded
from hsd.conversations import Conversation as Cached
from hsd.params import SamplingParams
from hsd.runtime import wrap
from hsd.sampling import Sampler
from hsd.scoring import score

_TOPIC = re.compile(r"\AAbout [^:\n]{1,40}: ")
Models = Mapping[str, LlamaForCausalLM]
"""Cheapest first, the target last."""


def commands(replies: Sequence[str], asked: Sequence[questions.CommandQuestion]) -> dict[str, float]:
    """Shares of right commands: word for word, and with an edit similarity of at least `questions.SIMILAR`."""
    found = [questions.command_of(reply) for reply in replies]
    near = [questions.similarity(command, q.commands) for command, q in zip(found, asked, strict=True)]
    exact = sum(command in q.commands for command, q in zip(found, asked, strict=True))
    return {
        "questions": len(asked),
        "exact": exact / len(asked),
        "similar": sum(value >= questions.SIMILAR for value in near) / len(asked),
        "edit_similarity": float(np.mean(near)),
    }


def facts(replies: Sequence[str], asked: Sequence[questions.FactQuestion]) -> dict[str, float]:
    """Share of replies that have every key fact, whatever they call their topic ("About passwords: …")."""
    said = [_TOPIC.sub("", reply) for reply in replies]
    right = sum(questions.has_facts(reply, q.facts) for reply, q in zip(said, asked, strict=True))
    return {"questions": len(asked), "right": right / len(asked)}


def sums(replies: Sequence[str], asked: Sequence[Conversation]) -> dict[str, float]:
    """Share of replies with the right result."""
    wanted = [questions.result_of(turns[-1].content) for turns in asked]
    right = sum(questions.result_of(reply) == result for reply, result in zip(replies, wanted, strict=True))
    return {"questions": len(asked), "right": right / len(asked)}


def perplexity(
    model: LlamaForCausalLM, tok: PreTrainedTokenizerFast, sets: Mapping[str, list[Conversation]]
) -> dict[str, float]:
    """Perplexity per token of the assistant's text, set by set."""
    batches = {name: list(padded(tokenizer.encode(found, tok), 16, 512)) for name, found in sets.items()}
    return {name: math.exp(mean_loss(model, found)) for name, found in batches.items()}


def acceptance(
    models: Models, tok: PreTrainedTokenizerFast, asked: list[Conversation], temperature: float, seed: int = 1
) -> dict[str, Any]:
    """Acceptance of every pair on the target's own replies, by the same scoring that plans rest on.

    Args:
        models: cheapest first, the target last.
    Returns:
        "positions": scored tokens, "pairs": {"draft>verifier": mean over positions of sum min(p, q)}; the lookup level
        counts as 0 where it proposes nothing.
    """
    target = list(models.values())[-1]
    wrapped = {name: wrap(name, model, tokenizer.CONTEXT) for name, model in models.items()}
    params = SamplingParams(temperature=temperature)
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for reply in answer(target, tok, asked, temperature=temperature, seed=seed):
        tokens = [*reply.prompt, *reply.ids]
        sampler = Sampler(params, reply.prompt, len(tok), "cpu")
        scores = score(Cached(wrapped), list(models), tokens, len(reply.prompt), sampler)
        assert scores is not None
        for (draft, verifier), overlaps in scores.overlaps.items():
            found[f"{draft}>{verifier}"].append(np.nan_to_num(overlaps))
    whole = {pair: np.concatenate(parts) for pair, parts in found.items()}
    return {
        "positions": len(next(iter(whole.values()), ())),
        "pairs": {pair: float(values.mean()) for pair, values in whole.items()},
    }

"""Replies that are judged, by transformers' own generation; those that drafts learn from are written by `writing`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hsd.builtin.conversation import Conversation, as_messages

LONGEST_PROMPT = 384  # tokens
LONGEST_REPLY = 128  # tokens
ROWS = {"cpu": 96, "cuda": 1024}
"""Replies written at once: a step costs a GPU the same for 1 and for 1,000."""


@dataclass(frozen=True)
class Reply:
    """What a model answered: ids of prompt and reply (its end token included, if it ended), and its text."""

    prompt: list[int]
    ids: list[int]
    text: str
    ended: bool


def answer(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Conversation],
    *,
    temperature: float = 0.7,
    seed: int = 0,
) -> list[Reply]:
    """Let a model answer the last question of every conversation, many at once.

    Args:
        model: in bfloat16 this is several times faster than in float32.
        temperature: of sampling; 0 is greedy.
    Returns:
        replies in the order of the conversations; those with a prompt of more than 384 tokens are left out.
    """
    prompts = [prompt_ids(turns, tokenizer) for turns in conversations]
    order = sorted((i for i, ids in enumerate(prompts) if len(ids) <= LONGEST_PROMPT), key=lambda i: len(prompts[i]))
    end = int(model.config.eos_token_id)
    found: dict[int, Reply] = {}
    rows = ROWS.get(model.device.type, ROWS["cpu"])
    model.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for first in tqdm(range(0, len(order), rows), desc="replies", mininterval=5, disable=len(order) <= rows):
            some = order[first : first + rows]
            for i, ids in zip(some, _generate(model, [prompts[i] for i in some], temperature), strict=True):
                ended = end in ids
                said = ids[: ids.index(end) + 1] if ended else ids
                text = str(tokenizer.decode(said, skip_special_tokens=True))
                found[i] = Reply(prompts[i], said, text, ended)
    return [found[i] for i in sorted(found)]


def prompt_ids(turns: Conversation, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids up to where the assistant's last reply begins."""
    messages = as_messages(turns[:-1] if turns[-1].role == "assistant" else turns)
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return ids


@torch.no_grad()
def _generate(model: LlamaForCausalLM, prompts: list[list[int]], temperature: float) -> list[list[int]]:
    """At most LONGEST_REPLY ids each, right of prompts padded on the left."""
    width = max(len(prompt) for prompt in prompts)
    pad = int(model.config.pad_token_id)
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=LONGEST_REPLY, pad_token_id=pad, **how)
    found: list[list[int]] = out[:, width:].tolist()
    return found

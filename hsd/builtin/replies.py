"""The target's own replies as text for its drafts: what is drafted in use is what the target says, not the corpus."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hsd.builtin.conversation import Conversation, as_messages
from hsd.builtin.stream import Encoded
from hsd.builtin.tokenizer import WEIGHT_SCALE

LONGEST_PROMPT = 384  # tokens
LONGEST_REPLY = 128  # tokens
ROWS = 96


def sample(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    conversations: list[Conversation],
    *,
    temperature: float = 0.7,
    seed: int = 0,
) -> Encoded:
    """Let the model answer the last question of every conversation.

    Args:
        model: the target; in bfloat16 this is several times faster than in float32.
        temperature: of sampling; 0 is greedy.
    Returns:
        ids and loss weights of prompt and reply, in the order of the conversations' lengths, ready for a stream.
    """
    prompts = sorted((prompt_ids(turns, tokenizer) for turns in conversations), key=len)
    prompts = [ids for ids in prompts if len(ids) <= LONGEST_PROMPT]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return list(_sample(model.eval(), prompts, temperature))


def prompt_ids(turns: Conversation, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids up to where the assistant's last reply begins."""
    messages = as_messages(turns[:-1] if turns[-1].role == "assistant" else turns)
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return ids


def _sample(model: LlamaForCausalLM, prompts: list[list[int]], temperature: float) -> Iterator[tuple]:
    end = int(model.config.eos_token_id)
    for first in tqdm(range(0, len(prompts), ROWS), desc="replies", mininterval=5):
        some = prompts[first : first + ROWS]
        for prompt, reply in zip(some, _generate(model, some, temperature).tolist(), strict=True):
            cut = reply.index(end) + 1 if end in reply else len(reply)
            ids = np.array(prompt + reply[:cut], np.uint16)
            weights = np.array([1] * len(prompt) + [WEIGHT_SCALE] * cut, np.uint8)
            weights[0] = 0  # nothing comes before the first token that could predict it
            yield ids, weights


@torch.no_grad()
def _generate(model: LlamaForCausalLM, prompts: list[list[int]], temperature: float) -> Tensor:
    """Replies [rows, at most LONGEST_REPLY], right of prompts padded on the left."""
    width = max(len(prompt) for prompt in prompts)
    pad = int(model.config.pad_token_id)
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=LONGEST_REPLY, pad_token_id=pad, **how)
    return out[:, width:]

"""Judge the stored family: `python -m hsd.builtin.evaluate [--corpus DIR]`. Prints what the card says.

Held-out loss per model, replies of the target to held-out questions, and how often each model would be accepted by
each larger one on the target's own replies. With a corpus there are more texts to judge on.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from hsd.builtin import MODELS, WEIGHTS, own, tokenizer
from hsd.builtin.conversation import Conversation
from hsd.builtin.distill import overlap
from hsd.builtin.loop import mean_loss
from hsd.builtin.mixture import Mixture
from hsd.builtin.replies import prompt_ids, sample
from hsd.builtin.stream import Encoded, padded

PROMPTS = 160  # at most so many are answered


def main(arguments: list[str] | None = None) -> int:
    """Print all figures as Markdown tables."""
    p = argparse.ArgumentParser(prog="python -m hsd.builtin.evaluate", description=__doc__)
    p.add_argument("--corpus", type=Path, help="folder with the text; without it only the package's own questions")
    p.add_argument("--weights", type=Path, default=WEIGHTS)
    a = p.parse_args(arguments)
    tok = tokenizer.load(a.weights / MODELS[-1])
    models = {name: AutoModelForCausalLM.from_pretrained(a.weights / name, dtype=torch.float32) for name in MODELS}
    sets = Mixture(a.corpus).held_out()
    print_losses(models, tok, sets)
    print_replies(models, tok)
    questions = [turns for found in sets.values() for turns in found[: PROMPTS // len(sets)]]
    print_endings(models[MODELS[-1]], tok, questions)
    for temperature in (0.0, 0.7):
        print_acceptance(models, tok, questions, temperature)
    return 0


def print_losses(
    models: dict[str, LlamaForCausalLM], tok: PreTrainedTokenizerFast, sets: dict[str, list[Conversation]]
) -> None:
    """Held-out loss in nats per token of the assistant's text, a row per model."""
    batches = {name: list(padded(tokenizer.encode(found, tok), 16, 512)) for name, found in sets.items()}
    print("| model | " + " | ".join(batches) + " |\n" + "|---" * (len(batches) + 1) + "|")
    for name, model in models.items():
        print(f"| {name} | " + " | ".join(f"{mean_loss(model, found):.3f}" for found in batches.values()) + " |")


def print_replies(models: dict[str, LlamaForCausalLM], tok: PreTrainedTokenizerFast) -> None:
    """Greedy replies to the held-out questions: exact matches and mean edit similarity, per model."""
    known = own.read_held_out()
    for name, model in models.items():
        found = [reply_to(model, tok, turns) for turns in known]
        pairs = [(reply, turns[-1].content) for reply, turns in zip(found, known, strict=True)]
        exact = sum(reply == wanted for reply, wanted in pairs)
        similar = sum(SequenceMatcher(None, reply, wanted).ratio() for reply, wanted in pairs) / len(pairs)
        print(f"\n{name}: {exact} of {len(pairs)} held-out questions answered exactly, edit similarity {similar:.2f}")
        if name == MODELS[-1]:
            for turns, reply in zip(known, found, strict=True):
                print(f"- {turns[0].content}\n  > {reply!r}")


def reply_to(model: LlamaForCausalLM, tok: PreTrainedTokenizerFast, turns: Conversation) -> str:
    """Greedy reply to one conversation whose last turn is the expected reply."""
    ((ids, _),) = sample(model, tok, [turns], temperature=0)
    return str(tok.decode(ids[len(prompt_ids(turns, tok)) :].tolist(), skip_special_tokens=True))


def print_endings(model: LlamaForCausalLM, tok: PreTrainedTokenizerFast, questions: list[Conversation]) -> None:
    """How many greedy replies end by themselves within 128 tokens."""
    replies = sample(model, tok, questions, temperature=0)
    ended = sum(int(ids[-1]) == model.config.eos_token_id for ids, _ in replies)
    print(f"\n{ended} of {len(replies)} greedy replies end by themselves within 128 tokens")


@torch.no_grad()
def print_acceptance(
    models: dict[str, LlamaForCausalLM], tok: PreTrainedTokenizerFast, questions: list[Conversation], temperature: float
) -> None:
    """Mean over the target's own replies of the chance that the larger model accepts the smaller one's token."""
    replies: Encoded = sample(models[MODELS[-1]], tok, questions, temperature=temperature, seed=1)
    sums: dict[tuple[str, str], float] = defaultdict(float)
    count = 0.0
    for batch in padded(replies, 8, 512):
        said = batch.weights.bool()
        logits = {name: model(input_ids=batch.ids).logits[said] for name, model in models.items()}
        count += float(said.sum())
        for draft, verifier in combinations(models, 2):
            sums[draft, verifier] += float(overlap(logits[draft], logits[verifier], temperature).sum())
    print(f"\nacceptance at T = {temperature}, over {count:.0f} tokens")
    print("| draft | " + " | ".join(MODELS[1:]) + " |" + "\n" + "|---" * len(MODELS) + "|")
    for draft in MODELS[:-1]:
        cells = (f"{sums[draft, v] / count:.3f}" if (draft, v) in sums else "" for v in MODELS[1:])
        print(f"| {draft} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

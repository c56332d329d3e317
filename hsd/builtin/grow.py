"""A model made larger without a change in what it says, so that training goes on from what a smaller one has learnt.

A layer that is put in begins with output projections of zero, and so do the columns that a wider feed-forward part
adds to its down-projection: they add nothing until they are trained (after Chen, Goodfellow and Shlens 2016, Net2Net,
arXiv 1511.05641).
All other new weights are random, as large as their neighbours; zero on both sides would never learn.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from hsd.builtin import stored
from hsd.builtin.models import LADDERS, Shape
from hsd.errors import HsdError

State = dict[str, Tensor]

ENDS: tuple[str, ...] = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
"""Where a layer adds to the residual stream."""
_LAYER = "model.layers."


def read(folder: Path, stage: str, name: str) -> State:
    """Weights of model `name` as a stage of an earlier run last saved them in its work folder, or as a family has them.

    Args:
        folder: a run's work folder, or a family as it is shipped; what that has in 4 bits is unpacked.
    Raises:
        HsdError: it has no such model.
    """
    path = folder / f"{stage}.pt"
    if not path.is_file():
        if is_stored(folder, name):
            return dict(stored.load(stored.place_of(folder, name)).state_dict())
        message = f"There is neither a {path.name} nor a model '{name}' in {folder}."
        raise HsdError(message, "--grow-from takes the --work folder of a run, or the folder of a family.")
    learners = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["learners"]
    if name not in learners:
        raise HsdError(f"{path} has no model '{name}'.", "Its ladder needs the same names.")
    state: State = learners[name]["model"]
    return state


def is_stored(family: Path, name: str) -> bool:
    """Whether a model lies here as a family has it."""
    try:
        return bool(stored.place_of(family, name))
    except HsdError:
        return False


def shape_of(state: State) -> Shape:
    """The shape of a model of one of the ladders, by its weights, which do not show how wide a head is.

    Raises:
        HsdError: no ladder has it.
    """
    inner, width = state[f"{_LAYER}0.mlp.up_proj.weight"].shape
    layers = len(_numbers(state))
    for ladder in LADDERS.values():
        for shape in ladder.values():
            if (shape.width, shape.layers, shape.inner) == (width, layers, inner):
                return shape
    raise HsdError(f"No ladder has a model of width {width}, {layers} layers and inner width {inner}.")


def grow(state: State, small: Shape, model: LlamaForCausalLM, shape: Shape) -> None:
    """Fill a fresh model with the weights of a smaller one, so that both give the same logits.

    Args:
        state: weights of the smaller model, of shape `small`.
        model: of shape `shape`, with random weights; what is new keeps them, scaled.
    Raises:
        HsdError: it cannot hold the smaller one: another vocabulary, width or width of a head, or less of something.
    """
    grown = model.state_dict()
    embedding = "model.embed_tokens.weight"
    if (
        (small.width, small.head_width) != (shape.width, shape.head_width)
        or small.layers > shape.layers
        or small.inner > shape.inner
        or state[embedding].shape != grown[embedding].shape
    ):
        raise HsdError(
            f"A model of {shape} cannot begin with the weights of one of {small}.",
            "Vocabulary, width and width of a head have to be the same, layers and inner width no fewer.",
        )
    places = {(i + 1) * shape.layers // small.layers - 1: i for i in range(small.layers)}
    with torch.no_grad():
        for name, fresh in grown.items():
            if not name.startswith(_LAYER):
                fresh.copy_(state[name])
                continue
            number, part = name.removeprefix(_LAYER).split(".", 1)
            old = places.get(int(number))
            # A new layer is as large as the old one before it, or as the first.
            like = state[f"{_LAYER}{_before(places, int(number))}.{part}"]
            _fill(fresh, like, part, known=old is not None)


def _before(places: dict[int, int], number: int) -> int:
    return max((old for place, old in places.items() if place <= number), default=0)


def _fill(fresh: Tensor, like: Tensor, part: str, known: bool) -> None:
    """One weight of a layer: what `like` has, if the layer is known; zeros where it ends; else random, of its size."""
    if fresh.ndim == 1:
        fresh.copy_(like)
        return
    if part in ENDS:
        fresh.zero_()
    else:
        fresh.mul_(like.std() / fresh.std())
    if known:
        fresh[: like.shape[0], : like.shape[1]].copy_(like)


def _numbers(state: State) -> set[str]:
    return {name.removeprefix(_LAYER).split(".")[0] for name in state if name.startswith(_LAYER)}

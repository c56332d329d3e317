"""From logits to next-token distributions: the same settings at every level, each on its own prefix.

A `Sampler` belongs to one reply. It turns the logits of the last `n` positions of a sequence into `n` rows: one-hot
ids where decoding is greedy, dense probabilities otherwise (the two shapes that `hsd.verify` takes).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from hsd.errors import ConfigError
from hsd.filters import probabilities
from hsd.kernels import Kernels
from hsd.params import SamplingParams
from hsd.verify import Rows, draw, draw_from


class Sampler:
    """Distributions of one reply.

    Args:
        params: the settings.
        prompt: token ids of the prompt; penalties and forced ids need to know where the reply begins.
        vocab: number of token ids that may appear; logits beyond it are cut off (padding differs inside families).
        device: where the logits will be.
        kernels: draws and verifies in one function each, where there are such.

    Attributes:
        scale: one over the temperature, 0 where decoding is greedy.

    Raises:
        ConfigError: a biased, banned or forced id is outside the vocabulary.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        vocab: int,
        device: torch.device | str,
        kernels: Kernels | None = None,
    ) -> None:
        self.params = params
        self.kernels = kernels
        self.vocab = vocab
        self.device = device
        self._prompt_length = len(prompt)
        for name, ids in (
            ("logit_bias", tuple(params.logit_bias or ())),
            ("banned_ids", params.banned_ids),
            ("forced_ids", params.forced_ids),
        ):
            wrong = [i for i in ids if i >= vocab]
            if wrong:
                raise ConfigError(f"{name} holds token id {wrong[0]}.", f"The vocabulary has ids 0 to {vocab - 1}.")
        self._bias = _bias_row(params, vocab, device)
        self._penalties = _Penalties(params, prompt, vocab, device) if _wants_penalties(params) else None
        self._filtered = not params.greedy and (params.top_k > 0 or params.top_p < 1 or params.min_p > 0)
        self._filters = _filters(params) if torch.device(device).type != "cpu" else []
        # Nothing but a temperature: what a kernel can do at once.
        self._plain = not (self._filtered or self._penalties or self._bias is not None or params.forced_ids)
        self.scale = 0.0 if params.greedy else 1 / params.temperature

    def rows(self, logits: Tensor, sequence: Sequence[int]) -> Rows:
        """Distributions of the tokens that follow the last `n` prefixes of a sequence.

        Args:
            logits: `(n, >= vocab)`; row `i` belongs to the prefix that ends `n - 1 - i` tokens before the end.
            sequence: prompt, reply and pending tokens.

        Returns:
            `n` ids where decoding is greedy (-1 for a row that is no distribution), else float32 `(n, vocab)` (NaN for
            a row that is no distribution).
        """
        if self.kernels and self._plain:
            rows = self.kernels.rows(logits[:, : self.vocab], self.scale)
            if rows is not None:
                return rows
        logits = self._adjusted(logits[:, : self.vocab], sequence)
        if self.params.greedy and logits.device.type == "cpu":
            values = logits.float().numpy()  # a numpy pass costs less than finding torch's way to one
            ids = values.argmax(-1).tolist()  # which finds NaN first
            return [i if math.isfinite(values[row, i]) else -1 for row, i in enumerate(ids)]
        if self.params.greedy:
            top, best = logits.max(dim=-1)  # and one transfer for both
            pairs = torch.stack((best.double(), top.double())).T.tolist()
            return [int(i) if math.isfinite(x) else -1 for i, x in pairs]
        if logits.device.type == "cpu":
            # By numpy, in one thread: torch's threads wait for each other, which takes milliseconds on a busy machine.
            values = logits.float().numpy()
            if not self._filtered:
                return torch.from_numpy(_softmax(values, self.params.temperature))
            found = np.empty(logits.shape, dtype=np.float32)
            for at in range(len(values)):
                found[at] = self._probabilities(values[at])
            return torch.from_numpy(found)
        if self.params.temperature != 1:
            logits = logits / self.params.temperature
        for keep in self._filters:
            logits = keep(logits)
        return torch.softmax(logits, dim=-1, dtype=torch.float32)

    def _probabilities(self, values: np.ndarray) -> np.ndarray:
        params = self.params
        return probabilities(values, params.temperature, params.top_k, params.top_p, params.min_p)

    def draw(
        self, logits: Tensor, sequence: Sequence[int], coin: float, out: Tensor | None = None, measured: bool = True
    ) -> tuple[int, Rows, float]:
        """Draws the token behind a sequence: `rows` and `hsd.verify.draw` in one go, for the one row of a draft.

        Args:
            logits: `(1, >= vocab)`.
            sequence: prompt, reply and pending tokens.
            coin: in [0, 1); not used where decoding is greedy.
            out: float32 `(1, vocab)`, may take the row and is then what is returned of it; saves an allocation.
            measured: whether the probability that is returned matters; where it would cost a pass over the vocabulary
                it is 1 otherwise.

        Returns:
            The token (-1 if the row is no distribution), its row, and the row's largest probability before the draw.
        """
        if self.kernels and self._plain:
            return self._draw_at_once(self.kernels, logits[:, : self.vocab], coin, out, measured)
        if logits.device.type != "cpu":
            row = self.rows(logits, sequence)
            token = row[0] if isinstance(row, list) else draw(row[0], coin)
            return token, row, float(self.confidences(row, logits)) if measured else 1.0
        values = self._adjusted(logits[:, : self.vocab], sequence)[0].float().numpy()
        best = int(values.argmax())
        if not math.isfinite(values[best]):  # argmax finds NaN first
            return -1, [-1], 0.0
        if self.params.greedy:
            return best, [best], 1 / float(np.exp(values - values[best]).sum()) if measured else 1.0
        found = self._probabilities(values) if self._filtered else _softmax(values, self.params.temperature)
        token, total = draw_from(found, coin)
        if out is None:
            out = torch.from_numpy(found).unsqueeze(0)
        else:
            out[0].numpy()[:] = found
        return token, out, float(found[best]) / total

    def _draw_at_once(
        self, kernels: Kernels, logits: Tensor, coin: float, out: Tensor | None, measured: bool
    ) -> tuple[int, Rows, float]:
        if self.params.greedy:
            token, sure = kernels.top(logits, measured)
            return token, [token], sure
        if out is None:
            out = logits.new_empty((1, self.vocab), dtype=torch.float32)
        token, sure = kernels.draw(logits, self.scale, coin, out)
        return token, out, sure

    def confidences(self, rows: Rows, logits: Tensor) -> Tensor:
        """The largest probability of every row, before anything is drawn; of greedy rows, that at temperature 1.

        Args:
            rows: what `rows` made of these logits.
            logits: `(n, >= vocab)`.

        Returns:
            float32 `(n,)`.
        """
        if isinstance(rows, Tensor):
            return torch.from_numpy(rows.numpy().max(-1)) if rows.device.type == "cpu" else rows.amax(-1)
        logits = logits[:, : self.vocab].float()
        if logits.device.type == "cpu":
            values = logits.numpy()
            return torch.from_numpy(np.array([1 / np.exp(row - row.max()).sum() for row in values], dtype=np.float32))
        return (logits.amax(-1) - logits.logsumexp(-1)).exp()

    def rewind(self, length: int) -> None:
        """Forgets what was counted of the sequence beyond `length` tokens."""
        if self._penalties:
            self._penalties.rewind(length)

    def _adjusted(self, logits: Tensor, sequence: Sequence[int]) -> Tensor:
        """Bias, penalties and forced ids; returns its argument untouched where none is set."""
        n, end = logits.shape[0], len(sequence)
        forced_rows = len(self.params.forced_ids) - (end - n + 1 - self._prompt_length)
        if self._bias is None and self._penalties is None and forced_rows <= 0:
            return logits
        # One copy, here alone: the logits may be the runtime's own buffer.
        logits = _copy(logits, self._bias)
        if self._penalties:
            for i in range(n):
                self._penalties.apply(logits[i], sequence, end - n + 1 + i)
        first = end - n + 1 - self._prompt_length  # place in the reply that row 0 decides
        for i in range(min(n, max(forced_rows, 0))):
            logits[i] = -torch.inf
            logits[i, self.params.forced_ids[first + i]] = 0.0
        return logits


def _softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # a row that is no distribution becomes NaN
        weights = logits - logits.max(-1, keepdims=True)
        if temperature != 1:
            weights /= np.float32(temperature)
        np.exp(weights, out=weights)
        weights /= weights.sum(-1, keepdims=True)
    return weights


def _copy(logits: Tensor, bias: Tensor | None) -> Tensor:
    """A float32 copy with the bias added; in host memory by numpy, in one thread."""
    if logits.device.type == "cpu":
        values = logits.float().numpy()
        return torch.from_numpy(values.copy() if bias is None else values + bias.numpy())
    return logits.float().clone() if bias is None else logits.float() + bias


def _wants_penalties(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0


def _bias_row(params: SamplingParams, vocab: int, device: torch.device | str) -> Tensor | None:
    if not params.logit_bias and not params.banned_ids:
        return None
    row = torch.zeros(vocab, dtype=torch.float32)
    for token, value in (params.logit_bias or {}).items():
        row[token] += value
    row[list(params.banned_ids)] = -torch.inf
    return row.to(device)


def _filters(params: SamplingParams) -> list[Callable[[Tensor], Tensor]]:
    """transformers' own filters for rows on a GPU, only those that are on."""
    if params.greedy:
        return []
    wanted: list[tuple[str, float]] = []
    if params.top_k > 0:
        wanted.append(("TopKLogitsWarper", params.top_k))
    if params.top_p < 1:
        wanted.append(("TopPLogitsWarper", params.top_p))
    if params.min_p > 0:
        wanted.append(("MinPLogitsWarper", params.min_p))
    if not wanted:
        return []
    from transformers.generation import logits_process

    def bind(warper: Callable[[None, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda logits: warper(None, logits)

    return [bind(getattr(logits_process, name)(value)) for name, value in wanted]


class _Penalties:
    """Repetition, presence and frequency penalties at any prefix of one sequence.

    Counts move with the prefix that is asked for: forward by counting tokens, back by taking them off again. The
    levels ask for neighbouring prefixes, so a row costs its distinct tokens, not the length of the context.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int], vocab: int, device: torch.device | str) -> None:
        self._params = params
        self._device = device
        # Ids beyond the vocabulary have no logit to penalise.
        self._prompt_ids = {token for token in prompt if token < vocab}
        self._prompt_tensor = self._ids(self._prompt_ids)
        self._prompt_length = len(prompt)
        self._counts: Counter[int] = Counter()
        self._counted: list[int] = []  # reply and pending tokens in self._counts, in order

    def rewind(self, length: int) -> None:
        keep = max(length - self._prompt_length, 0)
        while len(self._counted) > keep:
            token = self._counted.pop()
            self._counts[token] -= 1
            if not self._counts[token]:
                del self._counts[token]

    def apply(self, row: Tensor, sequence: Sequence[int], length: int) -> None:
        """Changes `row`, the logits behind the first `length` tokens of the sequence, in place."""
        self.rewind(length)
        new = sequence[self._prompt_length + len(self._counted) : length]
        self._counts.update(new)
        self._counted.extend(new)
        params = self._params
        if params.repetition_penalty != 1:
            ids = torch.cat((self._prompt_tensor, self._ids(self._counts.keys() - self._prompt_ids)))
            seen = row[ids]
            row[ids] = torch.where(seen < 0, seen * params.repetition_penalty, seen / params.repetition_penalty)
        if self._counts and (params.presence_penalty or params.frequency_penalty):
            counts = torch.tensor(list(self._counts.values()), dtype=row.dtype, device=self._device)
            row[self._ids(self._counts)] -= params.presence_penalty + params.frequency_penalty * counts

    def _ids(self, ids: Iterable[int]) -> Tensor:
        return torch.tensor(list(ids), dtype=torch.long, device=self._device)

"""What drafts learn from: the target's replies with its distributions, to questions of the text and to unasked ones."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch

from hsd.bench.prompts import PROMPTS
from hsd.builtin import questions, stored, tokenizer, weights_file
from hsd.builtin.conversation import conversation
from hsd.builtin.distill import KL_SHARE, kept_loss
from hsd.builtin.kept import KeptStream, keep, read
from hsd.builtin.loop import Learner, Settings, logits_of
from hsd.builtin.loop import train as run
from hsd.builtin.mixture import Mixture, Shares
from hsd.builtin.models import Shape, build
from hsd.builtin.optim import Rates
from hsd.builtin.replies import prompt_ids
from hsd.builtin.unasked import chained, chains, crossed, unasked, written
from hsd.builtin.writing import KEPT, Writer

ASKED = ("Hi", "How do I list the files of a directory, hidden ones too?", "What is 2 + 3?", "and who are you?")
SMALL = Shares(howtos=20, named=5, app=10, small_talk=5, limits=5, follow_ups=3, sums=5)


@pytest.fixture(scope="module")
def tok():
    return tokenizer.load(weights_file("tiny"))


@pytest.fixture(scope="module")
def tiny():
    torch.set_num_threads(1)
    return stored.load(weights_file("tiny"))


@pytest.fixture(scope="module")
def replies(tok, tiny):
    prompts = [prompt_ids(conversation(text), tok) for text in ASKED * 3]
    return Writer(tiny).write(prompts, [0.0] * 4 + [0.7] * 8, seed=1, longest=40)


def test_what_is_kept_is_what_the_model_says(tiny, replies):
    assert len({len(one.ids) for one in replies}) > 2  # some rows ended and were taken out before others
    for place, one in enumerate(replies):
        whole = torch.tensor([[*one.prompt.tolist(), *one.ids.tolist()]])
        with torch.no_grad():
            logs = torch.log_softmax(tiny(whole).logits[0, len(one.prompt) - 1 : -1], -1)
        found = logs.gather(1, torch.from_numpy(one.likeliest.astype(np.int64)))
        assert found.shape == (len(one.ids), KEPT)
        sure = found > -5  # of what is unlikely bfloat16 says less
        assert (found - torch.from_numpy(one.logs.astype(np.float32)))[sure].abs().max() < 0.25
        if place < 4:
            clear = (one.logs[:, 0] - one.logs[:, 1]) > 0.5
            assert one.ids[clear].tolist() == logs.argmax(-1).numpy()[clear].tolist()


def test_a_reply_ends_with_the_end_or_is_as_long_as_it_may_be(replies, tiny):
    end = tiny.config.eos_token_id
    assert all((one.ids[-1] == end) != (len(one.ids) == 40 and one.ids[-1] != end) for one in replies)
    assert all(end not in one.ids[:-1] for one in replies)


def test_replies_are_drawn_from_the_distribution(tok, tiny):
    prompt = prompt_ids(conversation("I like cats."), tok)
    first = Writer(tiny).write([prompt] * 400, [1.0] * 400, seed=3, longest=1)
    counts = np.bincount([int(one.ids[0]) for one in first], minlength=4096) / 400
    p = np.zeros(4096)
    p[first[0].likeliest[0]] = np.exp(first[0].logs[0].astype(np.float64))
    assert np.minimum(counts, p).sum() > 0.85 and 0.1 < p.max() < 0.97
    again = Writer(tiny).write([prompt] * 400, [1.0] * 400, seed=3, longest=1)
    assert [int(one.ids[0]) for one in again] == [int(one.ids[0]) for one in first]


def test_kept_replies_come_back_whole(tmp_path, replies):
    keep(tmp_path / "r" / "round.npz", replies)
    for mine, theirs in zip(replies, read(tmp_path / "r" / "round.npz"), strict=True):
        for name in ("prompt", "ids", "likeliest", "logs"):
            assert np.array_equal(getattr(mine, name), getattr(theirs, name)), name
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["round.npz"]


def test_every_turn_reads_every_reply_once_and_a_batch_keeps_its_size(replies):
    stream = KeptStream(replies, seed=0)
    seen: list[int] = []
    for step in range(100):
        batch = stream.batch(step, 2, 128)
        (piece,) = batch.pieces(1)
        assert piece.ids.numel() <= 256
        seen += [id(one) for one in batch.written]
        if len(seen) == 2 * len(replies):
            break
    assert sorted(seen[: len(replies)]) == sorted(map(id, replies)) == sorted(seen[len(replies) :])
    assert seen[: len(replies)] != seen[len(replies) :]


def test_places_are_those_before_the_reply_and_pieces_add_up(tiny, replies):
    batch = KeptStream(replies, seed=0).batch(0, 8, 128)
    (whole,) = batch.pieces(1)
    following = whole.ids.flatten()[whole.places + 1].tolist()
    assert following == [int(token) for one in batch.written for token in one.ids]
    assert float(whole.weights.sum()) == pytest.approx(1)
    losses = []
    for count in (1, 3):
        with torch.no_grad():
            parts = [piece.loss(logits_of(tiny, piece.ids, piece.places)) for piece in batch.pieces(count)]
        losses.append(float(sum(parts)))
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_the_loss_is_the_logarithm_of_acceptance_and_a_share_of_the_divergence():
    p, q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.3, 0.5]])
    every, one = torch.tensor([[0, 1, 2]]), torch.ones(1)
    assert kept_loss(torch.log(p), every, torch.log(p), one).item() == pytest.approx(0, abs=1e-6)
    hot_p, hot_q = (v ** (1 / 0.7) / (v ** (1 / 0.7)).sum() for v in (p, q))
    expected = -torch.minimum(hot_p, hot_q).sum().log() + KL_SHARE * (p * (p / q).log()).sum()
    assert kept_loss(torch.log(q), every, torch.log(p), one).item() == pytest.approx(expected.item(), abs=1e-5)
    far = torch.tensor([[20.0, 0.0, 0.0]], requires_grad=True)
    kept_loss(far, every[:, 1:], torch.log(p)[:, 1:], one).backward()
    assert far.grad[0, 0] > 0.1  # even a draft that is nowhere near is told where to go


def test_a_draft_comes_nearer_to_what_was_kept(tmp_path, tok, replies):
    learner = Learner(build(Shape(64, 1, 96, 32), len(tok), seed=0), Rates(muon=0.02, adam=0.01, warmup=2), varied=True)
    stream = KeptStream(replies, seed=0)
    (piece,) = stream.batch(0, 8, 128).pieces(1)

    def judge() -> float:
        with torch.no_grad():
            return float(piece.loss(logits_of(learner.model, piece.ids, piece.places)))

    before = judge()
    settings = Settings(steps=30, rows=8, length=128)
    assert run({"m": learner}, stream, settings, tmp_path / "m.pt", say=lambda line: None) == 30
    assert judge() < 0.7 * before


def test_unasked_questions_are_many_and_none_of_those_that_are_kept_for_judging():
    mixture = Mixture(None, 0, SMALL)
    found = unasked(mixture, 1, 300)
    assert found == unasked(Mixture(None, 0, SMALL), 1, 300) != unasked(mixture, 2, 300)
    asked = {questions.plain(turns[-1].content) for turns in found}
    assert len(asked) > 200 and all(turns[-1].role == "user" for turns in found)
    never = {questions.plain(text) for text in questions.never_trained()}
    assert not asked & never
    assert not asked & {questions.plain(text) for texts in PROMPTS.values() for text in texts}


def test_chains_follow_what_was_written():
    table = chains(["how do I see files", "how do I copy files", "I see"])
    for seed in range(20):
        words = ["<", "<", *chained(table, {}, Random(seed)).split(), ">"]
        assert all(c in table[a, b] for a, b, c in zip(words, words[1:], words[2:], strict=False))
    made = {crossed("one two three four", "five six seven eight", Random(seed)) for seed in range(60)}
    assert "one two seven eight" in made and len(made) > 10


def test_a_round_of_replies_holds_questions_of_all_kinds(tok, tiny):
    mixture = Mixture(None, 0, SMALL)
    found = written(Writer(tiny), mixture, tok, 0, 48, seed=5)
    assert 40 <= len(found) <= 48
    same = written(Writer(tiny), mixture, tok, 0, 48, seed=5)
    assert [one.ids.tolist() for one in found] == [one.ids.tolist() for one in same]
    asked = {tok.decode(one.prompt.tolist()) for one in found}
    assert all(text.startswith("<|bos|>") and text.endswith("<|assistant|>") for text in asked) and len(asked) > 40

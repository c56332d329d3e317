"""The built-in family: the weights as they lie in the repository, its data, and its training."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from random import Random

import pytest
import torch

from hsd import gguf
from hsd.bench.prompts import PROMPTS
from hsd.builtin import (
    DATA,
    MODELS,
    WEIGHTS,
    own,
    persona,
    questions,
    stored,
    sums,
    tokenizer,
    train,
    weights_file,
)
from hsd.builtin.conversation import as_messages, conversation, held_out
from hsd.builtin.distill import overlap, soften
from hsd.builtin.export import export
from hsd.builtin.frames import HELD_OUT_FRAMES
from hsd.builtin.lines import rows
from hsd.builtin.loop import Learner, Settings, mean_loss
from hsd.builtin.loop import train as run
from hsd.builtin.mixture import Mixture, Shares
from hsd.builtin.models import LADDERS, SHIPPED, Shape, build, parameters
from hsd.builtin.optim import Rates, scale
from hsd.builtin.phrasing import answer, question
from hsd.builtin.stream import Rounds, Stream, padded
from hsd.builtin.tldr import clean_command, clean_wish, parse_page
from hsd.errors import HsdError
from hsd.runtime import LlamaCppModel, Reader
from hsd.runtime.llama_cpp.library import library
from hsd.runtime.llama_cpp.tokenizer import template_of

UNSEEN = [frame.split("{")[0].lower() for frame in HELD_OUT_FRAMES]
LIMIT = 40_000_000  # bytes of all committed weights
PAGE = """# tar

> Archiving utility.
> More information: <https://example.com>.

- E[x]tract an archive [f]ile into the target directory:

`tar xf {{path/to/source.tar[.gz|.bz2|.xz]}} {{[-C|--directory]}} {{path/to/directory}}`

- Display help:

`tar --help`
"""


@pytest.fixture(scope="module")
def tok():
    return tokenizer.load(weights_file("large"))


@pytest.mark.parametrize("name", MODELS)
def test_weights_load_and_have_the_shape_that_is_written_down(name):
    model = stored.load(weights_file(name))
    fresh = build(LADDERS[SHIPPED][name], 4096, seed=0)
    assert parameters(model) == parameters(fresh)
    assert model.config.tie_word_embeddings and model.config.max_position_embeddings == tokenizer.CONTEXT
    assert model.generation_config.eos_token_id == model.config.eos_token_id == 2
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_family_has_one_vocabulary_and_one_template():
    headers = [gguf.header(weights_file(name)) for name in MODELS]
    assert len({str(header.values["tokenizer.huggingface.json"]) for header in headers}) == 1
    assert {template_of(header) for header in headers} == {tokenizer.CHAT_TEMPLATE}
    assert len({tuple(header.array("tokenizer.ggml.tokens")) for header in headers}) == 1


def test_the_tokenizer_of_the_files_is_the_one_that_training_uses(tok, tmp_path):
    tok.save_pretrained(tmp_path)
    again = tokenizer.load(tmp_path)
    for file in sorted(DATA.iterdir()):
        for line in file.read_text(encoding="utf-8").splitlines():
            assert again(line).input_ids == tok(line).input_ids
    assert tok.all_special_ids == again.all_special_ids and len(tok.all_special_ids) == len(tokenizer.SPECIALS)


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_logits_do_not_depend_on_the_width_of_a_pass(name):
    """So a plan never changes a greedy reply: every format that ships is one of those of which this is true."""
    reader = Reader(model := LlamaCppModel(name, weights_file(name), 512, library()), model.new_cache())
    text = [(37 * at) % 4000 + 6 for at in range(316)]
    reader.prefill(text[:300])
    wide = reader.read(text, 16).clone()
    for at in range(16):
        reader.rewind(300 + at)
        assert torch.equal(reader.read(text[: 301 + at], 1)[0], wide[at])


def test_what_is_exported_computes_what_training_wrote(tmp_path, tok):
    model = build(LADDERS["try"]["large"], len(tok), seed=3)
    stored.store(model, tok, tmp_path / "m", nf4_from=10**9)
    export(tmp_path / "m", tmp_path / "m.gguf", "F32")
    ids = list(range(6, 70))
    with torch.no_grad():
        expected = stored.load(tmp_path / "m")(torch.tensor([ids])).logits[0]
        assert torch.equal(stored.load(tmp_path / "m.gguf")(torch.tensor([ids])).logits[0], expected)
    exported = LlamaCppModel("m", tmp_path / "m.gguf", 128, library())
    assert (Reader(exported, exported.new_cache()).read(ids, 64, 64) - expected).abs().max() < 0.01
    export(tmp_path / "m.gguf", tmp_path / "small.gguf", "IQ4_NL")
    assert (tmp_path / "small.gguf").stat().st_size < (tmp_path / "m.gguf").stat().st_size / 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "m.gguf", "small.gguf"]


def test_weights_fit_the_repository_and_get_dearer():
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= LIMIT
    sizes = [weights_file(name).stat().st_size for name in MODELS]
    assert sizes == sorted(sizes) and sizes[-1] > 10 * sizes[0]


def test_an_unknown_model_is_named_in_the_error():
    with pytest.raises(HsdError, match="huge"):
        weights_file("huge")


def ids_of(tok, messages, **options):
    return tok.apply_chat_template(messages, tokenize=True, return_dict=False, **options)


@pytest.mark.parametrize("reply", ["ls", " spaced \n", "```sh\nls\n```\n", "12345", "naïve 🙂", ""])
def test_a_prompt_with_its_reply_is_the_start_of_the_next_prompt(tok, reply):
    messages = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "\n how? "}]
    prompt = ids_of(tok, messages, add_generation_prompt=True)
    said = tok(reply, add_special_tokens=False)["input_ids"]
    messages.append({"role": "assistant", "content": reply})
    assert ids_of(tok, messages) == prompt + said + [tok.eos_token_id]
    messages.append({"role": "user", "content": "and then?"})
    following = ids_of(tok, messages, add_generation_prompt=True)
    assert following[: len(prompt) + len(said) + 1] == prompt + said + [tok.eos_token_id]


def test_text_survives_the_tokenizer(tok):
    for text in ("tar xzf path/to/a.tar.gz", " two  spaces\n\n\ttab", "5 < 6 && echo '{}' \\;", "Ünïcödé 漢字 🙂"):
        assert tok.decode(tok(text, add_special_tokens=False)["input_ids"]) == text


def test_training_encodes_as_the_chat_template_does(tok):
    turns = conversation("Hi ", "Hello! 12", "ls?", "```sh\nls\n```", system="Be brief.")
    ((ids, weights),) = tokenizer.encode([turns], tok)
    assert ids.tolist() == ids_of(tok, as_messages(turns))
    judged = [tok.decode([i]) for i, w in zip(ids.tolist(), weights, strict=True) if w == tokenizer.WEIGHT_SCALE]
    assert "".join(judged) == "Hello! 12<|end|>```sh\nls\n```<|end|>"


@pytest.mark.parametrize("name", own.SCRIPTS)
def test_scripts_are_well_formed(name):
    for script in own.read_scripts(name):
        turns = script.play(Random(0))
        assert [turn.role for turn in turns] == ["user", "assistant"] * len(script.replies)
        assert all(turn.content.strip() == turn.content != "" for turn in turns)
        assert all(turn.content.count("```") % 2 == 0 for turn in turns)


def test_there_are_enough_conversations_of_its_own():
    assert sum(len(own.read_scripts(name)) for name in own.SCRIPTS) >= 150
    assert len(own.read_howtos()) >= 200
    # Ways to ask, by hand: what is asked for in one way only is understood in that way only.
    assert min(len(h.asked) for name in ("howto", "named") for h in own.read_howtos(name)) >= 12
    assert min(len(script.asked[0]) for script in own.read_scripts("app")) >= 12
    assert len({h.task.wish + h.task.program for h in own.read_howtos()}) == len(own.read_howtos())


def test_a_broken_data_line_is_named(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"turns": []}\nno json\n')
    with pytest.raises(HsdError, match=r"bad\.jsonl:2"):
        rows(bad, {"turns"})


def test_held_out_questions_are_never_trained_on():
    never = {json.loads(line)["asked"] for line in (DATA / "held_out.jsonl").open()}
    never |= {prompt for prompts in PROMPTS.values() for prompt in prompts}
    forbidden = {text.lower().strip("?.!") for text in never}
    mixture = Mixture(None)
    for number in range(2):
        for turns in mixture.round(number):
            asked = {turn.content.lower().strip("?.!") for turn in turns if turn.role == "user"}
            assert not asked & forbidden
            assert not any(text.startswith(start) for text in asked for start in UNSEEN)


def test_the_prompts_of_the_benchmark_are_listed_as_never_asked():
    listed = (DATA / "never_asked.txt").read_text(encoding="utf-8").splitlines()
    assert {prompt for prompts in PROMPTS.values() for prompt in prompts} <= set(listed)


def test_a_round_is_a_function_of_seed_and_number():
    small = Shares(howtos=20, named=5, app=10, small_talk=5, limits=5, follow_ups=3, sums=5)
    assert Mixture(None, 1, small).round(3) == Mixture(None, 1, small).round(3)
    assert Mixture(None, 1, small).round(3) != Mixture(None, 2, small).round(3)
    assert held_out("x", 1) and sum(held_out(str(i), 10) for i in range(1000)) in range(60, 140)


def test_pages_become_runnable_commands():
    page = parse_page(PAGE)
    assert page is not None and page.summary == "Archiving utility" and len(page.tasks) == 1
    assert page.tasks[0].command == "tar xf path/to/source.tar.gz --directory path/to/directory"
    assert answer(page.tasks[0]).startswith("To extract an archive file into the target directory, use `tar`:\n\n")
    assert "{" not in question(page.tasks[0], Random(0))
    assert clean_command("ip {{[l|link]}} set {{eth0}} {{up|down}}") == "ip link set eth0 up"
    assert clean_command("docker ps --format '{{\\{\\{.Names\\}\\}}}'").count("{{") <= 1
    assert clean_wish("[c]reate a g[z]ipped archive (see `tar`):") == "create a gzipped archive"


def test_dialogues_alternate_and_blanks_are_left_out():
    said = "User 2: Oh.\nUser 1: Hi!\nUser 1: You?\nUser 2: Fine.\nUser 1: Good.\nUser 2: Bye.\nUser 1: Bye"
    turns = persona.parse(said)
    assert turns == conversation("Hi! You?", "Fine.", "Good.", "Bye.")
    assert persona.parse("User 1: I am [name].\nUser 2: Hi.\nUser 1: a\nUser 2: b") is None


def test_sums_are_right_in_every_step():
    rng = Random(0)
    steps = 0
    for _ in range(400):
        first, *rest = sums.arithmetic(rng)[1].content.rstrip(".").split(" = ")
        assert all(math.isclose(eval(first), eval(said)) for said in rest), (first, rest)
        steps += len(rest) > 1
    assert steps > 50


def test_conversions_are_right_in_every_step():
    rng = Random(0)
    steps = 0
    for _ in range(400):
        reply = sums.units(rng)[1].content
        number, unit, worked, other = re.fullmatch(r"(\d+) (.+?) are (?:about )?([\d.+= ]+) (\D+)\.", reply).groups()
        *parts, result = worked.split(" = ")
        factors = {(a, b): factor for a, b, factor in sums._UNITS}
        if (unit, other) in factors:
            assert float(result) == pytest.approx(float(number) * factors[unit, other], abs=0.051)
        assert all(eval(part) == pytest.approx(float(result), abs=0.061) for part in parts)
        steps += bool(parts)
    assert steps > 50


def test_held_out_sums_are_asked_in_no_wording():
    def what(reply: str) -> tuple[str, str]:
        """("57 + 30", "") or ("47 feet", "meters.")"""
        first, rest = re.split(r" = | are ", reply, maxsplit=1)
        return first, rest.rsplit(" ", 1)[1] if " are " in reply else ""

    rng = Random(0)
    held_out = {what(turns[1].content) for turns in questions.read_sums()}
    trained = {what(make(rng)[1].content) for make in (sums.arithmetic, sums.units) for _ in range(10_000)}
    assert len(held_out) > 55 and len(trained) > 4_000
    assert not held_out & trained


def test_rates_rise_stay_and_fall_to_zero():
    rates = Rates(warmup=10, decay=0.5)
    factors = [scale(step, 100, rates) for step in range(101)]
    assert factors[0] == 0.1 and factors[30] == 1.0 and factors[-1] == 0.0
    assert factors[50:] == sorted(factors[50:], reverse=True)


def test_overlap_is_the_chance_of_acceptance():
    p, q = torch.log(torch.tensor([0.5, 0.3, 0.2])), torch.log(torch.tensor([0.2, 0.3, 0.5]))
    assert overlap(q, p, 1.0).item() == pytest.approx(0.7)
    assert overlap(q, p, 0).item() == 0 and overlap(p, p, 0).item() == 1


def test_a_draft_learns_the_target_and_a_little_of_the_text():
    wanted = soften(torch.log(torch.tensor([[0.5, 0.3, 0.2]])), torch.tensor([2]))
    assert torch.allclose(wanted, torch.tensor([[0.45, 0.27, 0.28]]))


class Killed(Exception):
    """Stands for a kill between two checkpoints."""


def small_run(folder: Path, kill_at: int | None = None) -> dict[str, torch.Tensor]:
    mixture = Mixture(None, 0, Shares(howtos=40, named=0, app=10, small_talk=5, limits=5, follow_ups=3, sums=5))
    texts = (turn.content for turns in mixture.round(0) for turn in turns)
    learnt = tokenizer.train(texts, 512)
    stream = Stream(Rounds(folder / "rounds", lambda number: tokenizer.encode(mixture.round(number), learnt)))
    learner = Learner(build(Shape(64, 1, 96, 32), len(learnt), seed=0), Rates())

    def judge(model: torch.nn.Module) -> dict[str, float]:
        if kill_at is not None:
            raise Killed
        return {
            "held out": mean_loss(model, list(padded(tokenizer.encode(questions.read_replies()[:4], learnt), 4, 64)))
        }

    settings = Settings(steps=8, rows=2, length=32, save_every=2, judge_every=kill_at or 8)
    run({"large": learner}, stream, settings, folder / "target.pt", judge=judge, say=lambda line: None)
    return {name: value.clone() for name, value in learner.model.state_dict().items()}


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = small_run(tmp_path / "a")
    with pytest.raises(Killed):
        small_run(tmp_path / "b", kill_at=5)
    assert torch.load(tmp_path / "b" / "target.pt", weights_only=True)["step"] == 4
    resumed = small_run(tmp_path / "b")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_missing_corpus_is_one_sentence(tmp_path, capsys):
    assert train.main(["--work", str(tmp_path / "w"), "--corpus", str(tmp_path / "none"), "--stage", "tokenizer"]) == 1
    assert "tldr-pages-en.tar.gz" in capsys.readouterr().err


def test_all_models_know_the_held_out_questions(tok):
    """In words near those of training, drafts are as good as the target; the card has the other sets."""
    batches = list(padded(tokenizer.encode(questions.read_replies(), tok), 8, 256))
    losses = []
    for name in MODELS:
        losses.append(mean_loss(stored.load(weights_file(name)), batches))
    assert max(losses) < 0.1, dict(zip(MODELS, losses, strict=True))
    assert list(LADDERS[SHIPPED]) == list(MODELS)

"""Steps of our own in C++: right for every shape, the same at every width, and given up in a sentence."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from contextlib import contextmanager

import models as tiny
import pytest
import torch
from test_kernels import rows

import hsd
from hsd import verify
from hsd.hierarchy import Hierarchy
from hsd.kernels import Kernels
from hsd.levels import TokenSequence, make_levels
from hsd.loading.source import held_bytes, read_model
from hsd.lookup import SuffixIndex
from hsd.planning.stopping import Calibration, StopRule
from hsd.runtime import Drafting, LeanModel, Reader, building, layout, native, rounds, wrap
from hsd.runtime.compiled import CompiledSteps
from hsd.runtime.drawing import NativeKernels
from hsd.runtime.native import Library, refusal
from hsd.runtime.native_steps import NativeStep, NativeSteps
from hsd.runtime.packed import EightBits, FourBits, attach
from hsd.runtime.upgrades import Upgrades, native_possible
from hsd.sampling import Sampler

able = native.abilities().issuperset(native.NEEDED) and building.compiler() is not None
pytestmark = pytest.mark.skipif(not able, reason="this processor has no AVX512-BF16, or there is no C++ compiler")
IDS = torch.randint(0, 256, (400,), generator=torch.Generator().manual_seed(0)).tolist()
SHAPES = ("llama", "llama-biases", "mistral", "qwen2", "qwen3")


def made(shape: str, dtype: torch.dtype, seed: int = 0):
    """A tiny model of bf16 weights; smaller ones than usual, or rounding alone would change every opinion."""
    model = tiny.model(shape, seed=seed, width=64)
    for name, weight in model.named_parameters():
        weight.data = (weight.data * (0.3 if weight.ndim > 1 else 1)).bfloat16()
        if name.endswith("bias"):
            weight.data = (0.3 * torch.randn(weight.shape)).bfloat16()
    return model.to(dtype)


def wrapped(shape: str = "qwen2", seed: int = 0) -> LeanModel:
    model = wrap("m", made(shape, torch.bfloat16, seed), 512)
    assert isinstance(model, LeanModel)
    return model


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The library, compiled behind everything as an engine does it."""
    folder = tmp_path_factory.mktemp("compiled")
    steps = NativeSteps(wrapped(), folder)
    builder = building.Builder([steps])
    assert builder.remaining == 1
    builder.start()
    assert builder.wait(200)
    assert not steps.failed(), [steps.failure(name).read_text() for name in steps.failed()]
    return folder


@pytest.fixture(params=["matrix unit", "vectors", "vectors, weights as they lie"])
def tiles(request, root, monkeypatch):
    has = Library(NativeSteps(wrapped(), root).path("native")).tiles
    if request.param == "matrix unit" and not has:
        pytest.skip("this processor has no matrix unit")
    if request.param.endswith("lie"):
        monkeypatch.setattr(native, "_TURNED", 0)  # as for a model that is too large to be held a second time
    return request.param == "matrix unit"


def using(model: LeanModel, root, tiles: bool) -> LeanModel:
    step = NativeStep(Library(NativeSteps(model, root).path("native")), model, tiles)
    model.use(dict.fromkeys(range(1, 17), step), "native")
    return model


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers_at_every_width_through_cuts_and_growth(shape, root, tiles):
    """Against transformers in float32 with the same weights: no further from it than its own bf16 pass may be."""
    model = using(wrapped(shape), root, tiles)
    with torch.inference_mode():
        whole, coarse = (
            made(shape, dtype)(torch.tensor([IDS]), use_cache=False).logits[0].float()
            for dtype in (torch.float32, torch.bfloat16)
        )
    allowed = 1.5 * float((whole - coarse).abs().max())
    assert allowed < 0.05 * float(whole.abs().max())  # or the comparison would say nothing
    for width in range(1, 17):
        for start in (0, 3, 250):  # at 250 the cache grows in the middle of it
            cache = model.new_cache()
            if start:
                Reader(model, cache).prefill(IDS[:start])
            got = model.forward(IDS[start : start + width], cache, width)
            assert float((got - whole[start : start + width]).abs().max()) < allowed
            cache.rewind(start)
            last = model.forward(IDS[start : start + width], cache, 1).clone()
            assert float((last - whole[start + width - 1]).abs().max()) < allowed
            assert model.forward([5], cache, 0).shape == (0, tiny.VOCAB)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_wide_pass_gives_bit_for_bit_what_single_ones_give(shape, root, tiles):
    model = using(wrapped(shape), root, tiles)
    for width in range(2, 17):
        for start in (0, 37, 255):
            wide, narrow = model.new_cache(), model.new_cache()
            for cache in (wide, narrow):
                if start:
                    Reader(model, cache).prefill(IDS[:start])
            rows = model.forward(IDS[start : start + width], wide, width).clone()
            for i in range(width):
                assert torch.equal(model.forward([IDS[start + i]], narrow, 1)[0], rows[i])
            for a, b in zip(wide.views(start + width), narrow.views(start + width), strict=True):
                assert torch.equal(a, b)


def test_turned_weights_have_pairs_of_columns_of_sixteen_rows_side_by_side():
    weight = torch.arange(35 * 6).view(35, 6)
    turned = native.turned(weight)
    assert turned.shape == (2, 3, 16, 2) and turned.is_contiguous()
    assert all(
        torch.equal(turned[n // 16, k, n % 16], weight[n, 2 * k : 2 * k + 2]) for n in range(32) for k in range(3)
    )


def packed(shape: str, seed: int = 0, bits: int = 4) -> LeanModel:
    """A model of which all products are there in 4 or 8 bits too."""
    model, some = made(shape, torch.bfloat16, seed), torch.Generator().manual_seed(seed)
    found = {}
    for name, module in model.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            rows, columns = module.weight.shape
            codes = torch.randint(0, 256, (rows // 16, columns // 64, 16, 32), dtype=torch.uint8, generator=some)
            scales = 0.1 * torch.rand((rows // 16, columns // 64, 16), generator=some)
            if bits == 4:
                found[f"model.{name}"] = FourBits(codes, scales, torch.linspace(-1, 1, 16))
            else:
                codes = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=some)
                found[f"model.{name}"] = EightBits(codes, scales.flatten()[:rows])
            module.weight.data = found[f"model.{name}"].unpacked()
    attach(model, found)
    lean = wrap("m", model, 512)
    assert isinstance(lean, LeanModel)
    return lean


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_weights_give_bit_for_bit_what_they_give_unpacked(shape, bits, root, tiles):
    model = packed(shape, bits=bits)
    assert native.packed(model) and not native.packed(wrapped(shape))
    library = Library(NativeSteps(model, root).path("native"))
    passes = []
    for small in (False, True):
        step, cache = NativeStep(library, model, tiles, small=small), model.new_cache()
        cache.reserve(400)
        logits = []
        for width in (16, 1, 2, 3, 4, 5, 8, 9, 16, 1):
            logits.append(step(IDS[cache.length : cache.length + width], cache, width).clone())
            cache.length += width
        passes.append((*logits, *cache.views(cache.length)))
    assert all(map(torch.equal, *passes))
    assert float(passes[0][0].abs().max()) > 0.1  # something was computed


def test_at_every_width_the_faster_of_both_is_used_and_remembered(root):
    steps = NativeSteps(packed("llama", seed=1), root)
    assert steps.attach()
    whole, small = steps._loaded["native"]
    found = [json.loads(note.read_text()) for note in steps.folder.glob("measured-m-*.json")]
    times = next(times for times in found if len(times["1"]) == 3)
    assert set(times) >= {"1", "2", "3", "5", "9", "16"}
    for width, step in steps.model._fast.items():
        compared = times[next(w for w in sorted(times, key=int) if int(w) >= width)]
        assert step is (whole if compared[1] <= compared[2] else small)


@pytest.mark.parametrize("name", ["medium", "large", "tiny"])
def test_what_bitsandbytes_stored_is_unpacked_as_it_unpacks_it(name, monkeypatch):
    """The built-in family's: 4 bits with double quantization from its files, and one that is made 8 bits."""
    monkeypatch.setenv("HSD_COMPILE", "1")
    spec = next(spec for spec in hsd.find_family("builtin").models if spec.name == name)
    spec = spec if spec.quantization == "nf4" else dataclasses.replace(spec, quantization="int8")
    model = read_model(spec, "cpu", "bfloat16")
    found = {n: m.packed for n, m in model.named_modules() if hasattr(m, "packed")}
    assert len(found) == 7 * model.config.num_hidden_layers
    for part, bits in found.items():
        assert torch.equal(bits.unpacked(), model.get_submodule(part).weight)
    before = held_bytes(model)
    lean = wrap(name, model, 512)
    assert isinstance(lean, LeanModel) and native.packed(lean)
    assert held_bytes(model) <= before * 1.001  # joined, and not held twice


@pytest.mark.parametrize("small", [False, True])
def test_a_prompt_in_pieces_is_read_as_token_by_token(root, small, tiles):
    model = packed("llama") if small else wrapped("llama")
    library = Library(NativeSteps(model, root).path("native"))
    model.use(dict.fromkeys(range(1, 17), NativeStep(library, model, tiles, small=small)), "native")
    for length, last in ((17, 1), (40, 3), (64, 0), (100, 20), (33, 33)):
        model.widest = 128
        pieces, single = model.new_cache(), model.new_cache()
        logits = model.forward(IDS[:length], pieces, last)
        assert logits.shape == (last, tiny.VOCAB) and pieces.length == length
        rows = [model.forward([token], single, 1).clone() for token in IDS[:length]]
        assert not last or torch.equal(logits, torch.cat(rows[length - last :]))
        assert all(map(torch.equal, pieces.views(length), single.views(length)))
        model.widest = 0
        whole = model.forward(IDS[:length], model.new_cache(), last)
        torch.testing.assert_close(logits, whole, atol=0.05 * float(rows[0].abs().max()), rtol=0)


def test_how_prompts_are_read_is_measured(root):
    steps = NativeSteps(wrapped("mistral", seed=4), root)
    assert steps.attach() and steps.model.widest in (0, 32, 64, 128, 256)
    times = steps._times()
    for width in (32, 64, 128, 256):
        faster = width in times and times[width][1] <= times[width][0]
        assert (width <= steps.model.widest) == faster
        if not faster:
            break


@contextmanager
def engine_with_native_steps(root, monkeypatch, shape: str, seed: int, noise: float):
    """An engine over related models in bf16, from small to big, that all use the library."""
    models = {n: m.to(torch.bfloat16) for n, m in tiny.related(shape, seed=seed, width=64, noise=noise).items()}
    with hsd.Engine.from_models(models, tiny.ByteTokenizer()) as engine:
        monkeypatch.setenv("HSD_COMPILE", "1")
        engine.upgrades = Upgrades(engine._models, root, tiny.VOCAB)
        yield engine


def test_a_stack_in_bf16_says_bit_for_bit_what_its_target_says_alone(root, monkeypatch):
    """What eager bf16 passes cannot promise: their rounding depends on the width."""
    drafted = 0
    with engine_with_native_steps(root, monkeypatch, "qwen2", 3, 0.1) as engine:
        assert isinstance(engine.upgrades.kernels, NativeKernels)
        assert {model.kind for model in engine._models.values()} == {"lean-2+native"}
        for turn in range(12):
            replies = []
            for plan in ("big", "small:3>big", "small:2>medium:4>big", "lookup:4>big"):
                engine.forget()
                replies.append(
                    engine.generate(f"say {turn}", hsd.SamplingParams(temperature=0, max_tokens=50), plan=plan)
                )
                drafted += replies[-1].stats.levels[-1].passes < len(replies[-1].token_ids)
            assert len({tuple(reply.token_ids) for reply in replies}) == 1
    assert drafted > 24  # the stacks really saved passes of the target


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("early_stop", [False, True])
def test_blocks_drafted_in_one_call_are_those_drafted_token_by_token(root, monkeypatch, temperature, early_stop):
    """Same coins, same tokens, same passes: of the first level alone, and under another draft."""
    with engine_with_native_steps(root, monkeypatch, "llama", 4, 0.2) as engine:
        lean = engine._models["small"]
        whole = lean._draft
        assert whole is not None
        stop = StopRule(Calibration(tuple(0.05 + 0.08 * i for i in range(12)), 0.8, 900), 1.0, 0.3)
        seen, blocks = [], []
        monkeypatch.setattr(rounds, "make", lambda *_: None)
        monkeypatch.setattr(type(lean), "draft", told(type(lean).draft, blocks))
        for drafter in (whole, None):
            lean._draft = drafter
            replies = []
            for turn in range(6):
                for plan in ("small:6>big", "small:3>medium:5>big"):
                    engine.forget()
                    replies.append(one_reply(engine, plan, temperature, turn, stop if early_stop else None))
            seen.append(replies)
        assert seen[0] == seen[1]
        assert len(blocks) > 30 and len(set(blocks)) > 2  # some ended before their last token


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("rule", ["block", "token"])
def test_blocks_judged_in_one_call_get_the_verdicts_of_three(root, monkeypatch, temperature, rule):
    """Pass, distributions and verdict at once: same coins, same tokens, same passes, at every level of a chain."""
    with engine_with_native_steps(root, monkeypatch, "qwen2", 6, 0.2) as engine:
        judged, plans = [], ("small:6>big", "small:3>medium:5>big", "lookup:3>medium:4>big", "small:20>big")
        whole = LeanModel.judge
        seen = []
        monkeypatch.setattr(rounds, "make", lambda *_: None)
        for at_once in (True, False):
            monkeypatch.setattr(LeanModel, "judges", lambda self, width, on=at_once: on and width in self._judges)
            monkeypatch.setattr(LeanModel, "judge", lambda self, *rest: judged.append(self.name) or whole(self, *rest))
            replies = []
            for turn in range(5):
                for plan in plans:
                    engine.forget()
                    replies.append(one_reply(engine, plan, temperature, turn, None, rule))
            seen.append(replies)
        assert seen[0] == seen[1]
        assert {"medium", "big"} == set(judged) and len(judged) > 60


CHAINS = ("big", "small:6>big", "small:20>big", "medium:2>big", "small:3>medium:5>big", "small:1>medium:1>big")


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("rule", ["block", "token"])
@pytest.mark.parametrize("early_stop", [False, True])
def test_rounds_in_one_call_are_those_of_level_by_level(root, monkeypatch, temperature, rule, early_stop):
    """Same coins, same tokens by the same levels, same passes; to the end of the text and to the limit."""
    stop = StopRule(Calibration(tuple(0.05 + 0.08 * i for i in range(12)), 0.8, 900), 1.0, 0.3) if early_stop else None
    with engine_with_native_steps(root, monkeypatch, "qwen3", 5, 0.2) as engine:
        played, play, make = [], rounds.Rounds.play, rounds.make

        def counted(self, tokens):
            before, left = len(tokens), self._round.tossed
            done = play(self, tokens)
            assert done and len(done.tokens) <= self._most and before + len(done.tokens) <= 90
            assert self._round.tossed - left <= self._coins or left == self._ahead
            played.append(done)
            return done

        monkeypatch.setattr(rounds.Rounds, "play", counted)
        seen = []
        for maker in (make, lambda *_: None):
            monkeypatch.setattr(rounds, "make", maker)
            replies = [one_reply(engine, plan, temperature, turn, stop, rule) for turn in range(4) for plan in CHAINS]
            seen.append((replies, len(played)))
        assert seen[0][0] == seen[1][0]
        assert seen[0][1] == seen[1][1] > 150  # all of the first kind, none of the second


def test_a_reply_goes_on_where_rounds_in_one_call_cannot(root, monkeypatch):
    """Steps that are replaced inside a reply, a level with much to catch up with, and a chain that is too deep."""
    with engine_with_native_steps(root, monkeypatch, "qwen2", 6, 0.2) as engine:
        alone = one_reply(engine, "small:3>medium:5>big", 0.9, 1, None)
        model, play, done = engine._models["medium"], rounds.Rounds.play, []

        def interrupted(self, tokens):
            if len(done) == 3:
                model.use(dict(model.steps), "native", model._draft)
            done.append(play(self, tokens))
            return done[-1]

        monkeypatch.setattr(rounds.Rounds, "play", interrupted)
        assert one_reply(engine, "small:3>medium:5>big", 0.9, 1, None) == alone
        assert [bool(found) for found in done] == [True, True, True, False]  # and it is not asked again

        def moving(self, tokens):
            for line in self._lines:
                line.cache.leave()  # as if somebody else had needed its place
            return play(self, tokens)

        monkeypatch.setattr(rounds.Rounds, "play", moving)
        assert one_reply(engine, "small:3>medium:5>big", 0.9, 1, None) == alone

        monkeypatch.setattr(rounds.Rounds, "play", play)
        monkeypatch.setattr(rounds, "_BEHIND", 3)  # of the prompt's seven tokens
        assert one_reply(engine, "small:3>medium:5>big", 0.9, 1, None)[:3] == alone[:3]
        monkeypatch.setattr(rounds, "_MOST_COINS", 10)
        assert one_reply(engine, "small:3>medium:5>big", 0.9, 1, None) == alone


@pytest.mark.parametrize("shape", ["llama", "qwen2"])
def test_the_number_of_threads_does_not_show(shape, root):
    """Whoever shares a processor with other programs gets the same reply as alone."""
    library, model = Library(NativeSteps(wrapped(), root).path("native")), wrapped(shape, seed=3)
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            step, cache, logits = NativeStep(library, model), model.new_cache(), []
            cache.reserve(64)
            for width in (1, 5, 16, 2):
                logits.append(step([7 + i for i in range(width)], cache, width).clone())
                cache.length += width
            seen.append(torch.cat(logits))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])


def test_a_pass_leaves_the_arithmetic_of_its_threads_as_it_was(root, tiles):
    """Inside a pass the smallest numbers count as 0; what others compute afterwards must not notice."""
    model = using(wrapped(), root, tiles)
    model.forward(IDS[:5], model.new_cache(), 5)
    small = torch.full((1 << 20,), 1e-40)  # large enough for torch to share it out among the same threads
    assert bool((small * 1.0 > 0).all())


@pytest.mark.parametrize("shape", ("llama", "qwen2"))
def test_weights_too_small_for_a_normal_number_count_as_none(shape, root, tiles):
    """Queries so long that softmax underflows, at widths that share keys in every way."""

    def sharp(dtype: torch.dtype):
        model = made(shape, dtype)
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.data *= 512
        return model

    model = using(wrap("m", sharp(torch.bfloat16), 512), root, tiles)
    with torch.inference_mode():
        exact = sharp(torch.float32)
        exact.set_attn_implementation("eager")  # shows its weights
        whole = exact(torch.tensor([IDS]), use_cache=False, output_attentions=True)
        coarse = sharp(torch.bfloat16)(torch.tensor([IDS]), use_cache=False).logits[0].float()
    small = torch.stack(whole.attentions)
    assert ((small > 0) & (small < 2**-126)).any()  # or the test would say nothing
    allowed = 1.5 * float((whole.logits[0] - coarse).abs().max())
    for start in (0, 37, 150):
        cache = model.new_cache()
        if start:
            Reader(model, cache).prefill(IDS[:start])
        for width in (1, 2, 3, 5, 7, 16):
            got = model.forward(IDS[start : start + width], cache, width)
            assert float((got - whole.logits[0, start : start + width]).abs().max()) < allowed
            cache.rewind(start)


def test_beside_other_work_on_every_core_a_reply_is_the_same(root, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # also where tests are given one core: then they stand in each other's way
    try:
        with engine_with_native_steps(root, monkeypatch, "qwen2", 3, 0.1) as engine:
            alone = one_reply(engine, "small:5>big", 0.9, 1, None)
            spin = "import time\nend = time.time() + 20\nwhile time.time() < end: pass"
            others = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(os.cpu_count() or 1)]
            try:
                assert all(one_reply(engine, "small:5>big", 0.9, 1, None) == alone for _ in range(5))
                assert all(other.poll() is None for other in others)
            finally:
                for other in others:
                    other.kill()
                    other.wait()
    finally:
        torch.set_num_threads(before)


def test_a_pass_that_judges_and_gives_no_numbers_names_its_level(root, monkeypatch):
    with engine_with_native_steps(root, monkeypatch, "qwen2", 3, 0.1) as engine:
        for temperature in (0.0, 0.8):
            assert engine.generate("say", hsd.SamplingParams(temperature=temperature), plan="small:4>big").error is None
        engine._models["big"].weights.norm[0] = torch.nan  # matrices may be held a second time, turned
        for temperature in (0.0, 0.8):
            engine.forget()
            reply = engine.generate("say", hsd.SamplingParams(temperature=temperature), plan="small:4>big")
            assert reply.finish_reason == "error" and "'big'" in reply.error
        engine._models["small"].weights.norm[0] = torch.nan
        for plan, level in (("small:4>big", "'small'"), ("small:4>medium:4>big", "'small'"), ("medium:4>big", "'big'")):
            engine.forget()
            reply = engine.generate("say", hsd.SamplingParams(temperature=0.8), plan=plan)
            assert reply.finish_reason == "error" and level in reply.error


def told(draft, blocks: list[int]):
    def drafting(*arguments):
        tokens, seconds = draft(*arguments)
        blocks.append(len(tokens))
        return tokens, seconds

    return drafting


def one_reply(engine, plan: str, temperature: float, seed: int, stop: StopRule | None, rule: str = "block"):
    """Ids, who drew them, and what every level did: all but times."""
    parsed = hsd.Plan.parse(plan)
    names = parsed.names
    readers = {n: Reader(engine._models[n], engine._models[n].new_cache()) for n in names if n != "lookup"}
    prompt = [tiny.USER, *b"say it", tiny.END, tiny.ASSISTANT]
    params = hsd.SamplingParams(temperature=temperature)
    sequence, index = TokenSequence(list(prompt), len(prompt)), SuffixIndex()
    index.settle(prompt)
    chain = Hierarchy(
        make_levels(names, parsed.thresholds, readers.__getitem__, lambda: index),
        sequence,
        Sampler(params, prompt, tiny.VOCAB, "cpu", engine.upgrades.kernels),
        end_ids={tiny.END},
        limit=90,
        rule=rule,
        coins=random.Random(seed),
        stop=stop,
    )
    while not chain.finished:
        chain.round()
    levels = [(level.name, level.proposed, level.accepted, level.passes, level.width) for level in chain.statistics()]
    contexts = [[(p.width, p.context) for p in readers[name].meter.passes] for name in readers]
    return sequence.tokens, sequence.origins, levels, contexts


def test_an_id_that_the_model_does_not_know_reads_no_foreign_memory(root, tiles):
    model = using(wrapped(), root, tiles)
    for bad in (tiny.VOCAB, -1, 10**12):
        with pytest.raises(IndexError, match="288"):
            model.forward([1, bad], model.new_cache(), 1)


def test_a_cache_full_to_the_last_position(root, tiles):
    model = using(wrapped(), root, tiles)
    cache = model.new_cache()
    Reader(model, cache).prefill((IDS * 2)[:509])
    assert model.forward([1, 2], cache, 1).isfinite().all()
    assert model.forward([1], cache, 1).isfinite().all() and cache.length == 512


def test_a_block_up_to_the_last_position_and_none_beyond(root, tiles):
    model = using(wrapped(), root, tiles)
    model.use(model._fast, "native", model._fast[1].draft)
    how = Drafting(1.4, tiny.VOCAB, frozenset(), None)
    rows = torch.empty((64, tiny.VOCAB))
    for most in (1, 5):
        cache = model.new_cache()
        Reader(model, cache).prefill((IDS * 2)[: 512 - 3 - (most - 1)])
        tokens, _ = model.draft([1, 2, 3], cache, most, [0.5] * most, rows, how)
        assert len(tokens) == most and cache.length == 512
    for ids, most in (([1, 2, 3], 2), ([], 1), (list(range(16)), 5)):
        cache = model.new_cache()
        Reader(model, cache).prefill((IDS * 2)[:509])
        with pytest.raises(hsd.ModelError, match="of at most 512"):
            model.draft(ids, cache, most, [0.5] * most, rows, how)


def test_a_context_shorter_than_what_steps_are_compared_behind(root):
    for context in (144, 130, 100, 16):
        model = wrap("m", made("llama", torch.bfloat16, seed=2), context)
        assert NativeSteps(model, root).attach() and model.kind == "lean-2+native"


def test_a_large_model_is_not_compared_while_somebody_waits(root, tmp_path):
    folder = shutil.copytree(root, tmp_path / "compiled")
    for note in folder.rglob("measured-*.json"):
        note.unlink()
    model = wrapped()
    steps, asked = NativeSteps(model, folder), iter([False, False, True])
    assert not steps.attach(lambda: next(asked)) and model.kind == "lean-2" and steps.fresh()
    asked = itertools.chain([False] * 4, itertools.repeat(True))  # two of six widths are known by now
    assert steps.attach(lambda: next(asked)) and model.kind == "lean-2+native" and not steps.fresh()


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_replies_while_another_model_is_loaded_in_this_process(root, default, monkeypatch):
    """Loading changes what torch takes by default for all threads; the library writes float32."""
    params = hsd.SamplingParams(temperature=0.8, max_tokens=40, seed=1, logit_bias={5: 1.0})
    with engine_with_native_steps(root, monkeypatch, "qwen2", 3, 0.1) as engine:
        replies = []
        for dtype in (torch.float32, default):
            engine.forget()
            torch.set_default_dtype(dtype)
            try:
                replies.append(engine.generate("say", params, plan="small:8>medium:9>big"))
            finally:
                torch.set_default_dtype(torch.float32)
    assert replies[0].token_ids == replies[1].token_ids and replies[1].error is None


def test_weights_that_are_no_numbers_give_logits_that_are_none(root, tiles):
    """So that the engine can say so: nothing turns a NaN into a token."""
    model = wrapped()
    model.weights.layers[0].down.weight[0, 0] = torch.nan
    using(model, root, tiles)
    for width in (1, 4):
        assert model.forward(IDS[:width], model.new_cache(), 1).isnan().any()


def test_it_draws_and_decides_as_the_plain_rules(root):
    """Also where a lookup drafted, where the block is empty, and where a vocabulary ends inside a block."""
    made = NativeKernels(Library(NativeSteps(wrapped(), root).path("native")))
    for seed in range(200):
        vocab = (128, 300, 257, 4096, 17)[seed % 5]
        q, p, draft, coins = rows(random.Random(seed), 1 + seed % 9, vocab)
        for rule in ("block", "token"):
            for block, below, above in ((draft, q, p), (draft, list(draft), p), ([], [], p[:1])):
                tossed = coins[: len(block) + 1]
                want = verify.verify(block, below, above, tossed, rule)
                assert verify.verify(block, below, above, tossed, rule, made) == want
        logits = 5 * torch.randn(3, vocab, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(made.rows(logits, 1.4), torch.softmax(1.4 * logits, -1), atol=1e-6, rtol=1e-5)
        assert made.rows(logits, 0.0) == logits.argmax(-1).tolist()
        out, same = torch.zeros(1, vocab), torch.zeros(1, vocab)
        got, want = made.draw(logits[:1], 1.25, coins[0], out), Kernels().draw(logits[:1], 1.25, coins[0], same)
        torch.testing.assert_close((*got, out), (*want, same), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(made.top(logits[1:2], True), Kernels().top(logits[1:2], True), atol=1e-6, rtol=1e-5)


def test_rows_that_are_no_distributions_are_told(root):
    made = NativeKernels(Library(NativeSteps(wrapped(), root).path("native")))
    good = torch.randn(1, 300)
    for name, value in (("NaN", torch.nan), ("infinite", torch.inf)):
        bad = good.clone()
        bad[0, 7] = value
        out = torch.zeros(1, 300)
        assert made.top(bad, True)[0] == -1 and made.draw(bad, 1.0, 0.5, out)[0] == -1, name
        assert made.rows(torch.cat((good, bad)), 0.0)[1] == -1, name
        both = made.rows(torch.cat((good, bad)), 1.0)
        assert both[0].isfinite().all() and both[1].isnan().all(), name
        for rule in ("block", "token"):
            with pytest.raises(verify.NoDistributionError):
                verify.verify([7], torch.softmax(good, -1), both.flip(0), [0.5, 0.5], rule, made)
    empty = torch.full((1, 300), -torch.inf)
    assert made.top(empty, False)[0] == made.draw(empty, 1.0, 0.5, torch.zeros(1, 300))[0] == -1
    few = empty.clone()
    few[0, [3, 299]] = 0.0
    drawn = {made.draw(few, 1.0, coin, torch.zeros(1, 300))[0] for coin in (0.0, 0.2, 0.5, 0.99999999)}
    assert drawn == {3, 299}


def test_what_it_cannot_compute_says_why_and_torch_compiles_it():
    assert refusal(wrapped()) is None
    assert "bfloat16" in refusal(wrap("m", tiny.model("llama", width=64), 512))
    assert "multiples" in refusal(wrap("m", tiny.model("llama", width=32).to(torch.bfloat16), 512))
    model = wrapped()
    model.weights.layers[0].down = torch.nn.Identity()
    assert "quantized" in refusal(model)


def test_a_damaged_library_is_made_anew(root, tmp_path, monkeypatch):
    monkeypatch.setenv("HSD_COMPILE", "1")
    folder = shutil.copytree(root, tmp_path / "compiled")
    library = NativeSteps(wrapped(), folder).path("native")
    library.write_bytes(library.read_bytes()[:1000])
    model = wrapped()
    upgrades = Upgrades({"m": model}, folder, tiny.VOCAB)
    assert model.kind == "lean-2" and not library.exists() and not list(folder.rglob("*.failed"))
    upgrades.start()
    upgrades.wait()
    assert upgrades.adopt() == ["m"] and model.kind == "lean-2+native" and isinstance(upgrades.kernels, NativeKernels)


def test_a_library_from_other_sources_is_not_called(root, monkeypatch):
    """A program that was updated while it runs: what its process of compiling made has other structures."""
    path = NativeSteps(wrapped(), root).path("native")
    monkeypatch.setattr(layout, "LAYOUT", (*layout.LAYOUT[:3], layout.LAYOUT[0]))
    with pytest.raises(OSError, match="other sources"):
        Library(path)


def test_why_nothing_was_made_is_said_and_tried_once_for_all(tmp_path, monkeypatch):
    monkeypatch.setenv("HSD_COMPILE", "1")
    broken = tmp_path / "g++"
    broken.write_text(
        '#!/bin/sh\ncase "$1" in --version) echo "Free Software Foundation";;\n'
        f'*) echo x >>"{tmp_path}/tried"; echo "error: no space on this planet" >&2; exit 1;; esac\n'
    )
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    models = {name: wrap(name, made("llama", torch.bfloat16), 512) for name in ("a", "b")}
    upgrades = Upgrades(models, tmp_path / "compiled", tiny.VOCAB)
    upgrades.start()
    upgrades.wait()
    assert upgrades.state.count("no space on this planet") == 3  # both models and the drawing
    assert (tmp_path / "tried").read_text() == "x\n"


def test_a_library_that_fails_is_set_aside_for_its_model_and_torch_compiles_instead(root, tmp_path, monkeypatch):
    monkeypatch.setenv("HSD_COMPILE", "1")
    assert native_possible()
    folder = shutil.copytree(root, tmp_path / "compiled")
    model = wrapped()
    with monkeypatch.context() as strange:
        strange.setattr(layout, "LAYOUT", layout.LAYOUT[:3])
        upgrades = Upgrades({"m": model}, folder)
    assert model.kind == "lean-2" and "m (OSError" in upgrades.state
    again = Upgrades({"m": wrapped()}, folder)
    assert isinstance(again._steps["m"], CompiledSteps)


def test_a_step_that_computes_something_else_is_never_used(root, tmp_path):
    folder = shutil.copytree(root, tmp_path / "compiled")
    for note in folder.rglob("measured-*.json"):
        note.unlink()
    model, other = wrapped(), wrapped(seed=9)
    steps = NativeSteps(model, folder)
    steps.load = lambda name: [NativeStep(Library(steps.path(name)), other)]
    assert not steps.attach() and model.kind == "lean-2"
    assert "differs" in steps.failure("native").read_text() and steps.failed() and not steps.missing()


def test_a_compiler_that_fails_leaves_a_reason(tmp_path, monkeypatch):
    broken = tmp_path / "sources"
    broken.mkdir()
    (broken / "step.cpp").write_text("int hsd_step( {")
    monkeypatch.setattr(native, "SOURCES", broken)
    with pytest.raises(RuntimeError, match="error"):
        native.compile_to(tmp_path / "native.so", building.compiler())
    assert [p.name for p in tmp_path.iterdir()] == ["sources"]


def test_tests_and_switched_off_machines_stay_eager(monkeypatch):
    assert not native_possible()  # HSD_COMPILE=0 in the tests
    monkeypatch.setenv("HSD_COMPILE", "1")
    assert native_possible()
    monkeypatch.setenv("CXX", "/nowhere")
    assert not native_possible()

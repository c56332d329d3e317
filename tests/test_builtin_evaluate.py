"""Held-out questions and what a reply to them is worth."""

from __future__ import annotations

import json

import pytest
import torch

from hsd.builtin import MODELS, evaluate, judging, own, questions, stored, tokenizer, weights_file
from hsd.builtin.conversation import conversation
from hsd.builtin.frames import FRAMES, NEXT, WITH_PROGRAM
from hsd.builtin.mixture import Mixture
from hsd.builtin.phrasing import doing, keywords
from hsd.builtin.replies import answer


def test_there_are_200_questions_for_commands_and_50_about_the_app():
    asked = [q.asked for q in (*questions.read_commands(), *questions.read_facts())]
    assert len(questions.read_commands()) == 200 and len(questions.read_facts()) == 50
    assert len({questions.plain(text) for text in asked}) == 250


def test_every_question_for_a_command_has_an_answer_that_is_trained():
    trained = {howto.task.command for howto in own.read_howtos()}
    assert not [q.asked for q in questions.read_commands() if not trained & set(q.commands)]


def test_no_held_out_question_is_in_the_data_in_any_frame():
    asked_of = [q.asked for q in (*questions.read_commands(), *questions.read_facts())]
    held_out = {questions.plain(text) for text in asked_of}
    asked = {
        text for name in own.SCRIPTS for script in own.read_scripts(name) for ways in script.asked for text in ways
    }
    for howto in own.read_howtos():
        for wish in (howto.task.wish, *howto.asked):
            blanks = {"wish": wish, "doing": doing(wish), "keywords": keywords(wish), "program": howto.task.program}
            asked |= {wish, *(frame.format(**blanks) for frame in (*FRAMES, *WITH_PROGRAM, *NEXT))}
    assert len(asked) > 5_000
    assert not [text for text in asked if questions.plain(text) in held_out]


def test_no_held_out_question_is_in_a_round():
    held_out = {questions.plain(text) for text in questions.never_trained()}
    mixture = Mixture(None)
    for number in range(2):
        asked = {questions.plain(t.content) for turns in mixture.round(number) for t in turns if t.role == "user"}
        assert len(asked) > 1_000 and not asked & held_out


def test_a_reply_is_right_if_its_command_is_nearly_one_of_the_accepted():
    reply = "To list all files, use `ls`:\n\n```sh\nls  --all\n```"
    assert questions.command_of(reply) == "ls --all"
    assert questions.command_of("no command here, `ls` or so") == ""
    assert questions.command_of("```\ntar xf a.tar") == "tar xf a.tar"  # cut off before the block ended
    asked = [questions.CommandQuestion("?", ("ls -a", "ls --all")), questions.CommandQuestion("?", ("df --human",))]
    found = judging.commands([reply, reply], asked)
    assert found["exact"] == found["similar"] == 0.5 and 0.5 < found["edit_similarity"] < 1
    assert (
        questions.similarity("tar xzf path/to/archive.tar.gz", ("tar -xzf path/to/archive.tar.gz",)) > questions.SIMILAR
    )


def test_the_last_number_of_a_reply_is_its_result():
    asked = [conversation("2 + 3", "2 + 3 = 5."), conversation("7 feet in meters", "7 feet are about 2.1 meters.")]
    assert judging.sums(["2 + 3 = 5.", "7 feet are 2.1 meters"], asked)["right"] == 1
    assert judging.sums(["5 + 2 = 3.", "No idea."], asked) == {"questions": 2, "right": 0}


def test_the_topic_of_a_reply_is_no_fact_of_it():
    about = own.read_scripts("app")
    assert all(script.replies[0].startswith("About ") and ": " in script.replies[0] for script in about)
    asked = [questions.FactQuestion("what protects a shared chat", (("password",),))]
    assert judging.facts(["About passwords: Any user name will do."], asked)["right"] == 0
    assert judging.facts(["About sharing: Visitors need a password."], asked)["right"] == 1


def test_sums_are_asked_with_numbers_of_their_own():
    sums = questions.read_sums()
    assert len({questions.plain(turns[0].content) for turns in sums}) == 60
    assert all(questions.result_of(turns[1].content) for turns in sums)


def test_a_reply_needs_a_word_of_every_fact():
    facts = (("no", "not"), ("stored", "kept"))
    assert questions.has_facts("No. It is stored.", facts)
    assert not questions.has_facts("You know that it is stored.", facts)
    assert not questions.has_facts("No.", facts)


@pytest.fixture(scope="module")
def tiny():
    torch.set_num_threads(1)
    return tokenizer.load(weights_file("tiny")), stored.load(weights_file("tiny"))


def test_replies_keep_the_order_of_the_questions(tiny):
    tok, model = tiny
    asked = [conversation("How do I list the files of a directory, hidden ones too?"), conversation("Hi")]
    first, second = answer(model, tok, asked, temperature=0)
    assert tok.decode(first.prompt).count("hidden") and not tok.decode(second.prompt).count("hidden")
    assert [r.text for r in answer(model, tok, asked[::-1], temperature=0)] == [second.text, first.text]
    assert second.ended and second.ids[-1] == tok.eos_token_id


def test_acceptance_by_scoring_is_a_mean_of_probabilities(tiny):
    tok, model = tiny
    found = judging.acceptance({"draft": model, "same": model}, tok, [conversation("Hi")], 0.7)
    assert found["positions"] > 1
    assert found["pairs"]["draft>same"] == pytest.approx(1, abs=1e-3)
    assert 0 <= found["pairs"]["lookup>same"] < 1


def test_the_command_judges_one_model(tmp_path, capsys):
    options = ["--models", "tiny", "--quick", "--parts", "replies", "--json", "--replies", str(tmp_path / "said")]
    assert evaluate.main(options) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["models"]["tiny"]
    assert found["commands"]["questions"] == 40 and found["facts"]["questions"] == 10
    assert found["sums"]["questions"] == 12
    assert 0 < found["known"]["similar"] < 1 and 0 < found["endings"]["ended"] <= 1
    assert len((tmp_path / "said").read_text().splitlines()) == 62


def test_a_family_that_is_not_there_is_one_sentence(tmp_path, capsys):
    assert evaluate.main(["--weights", str(tmp_path)]) == 1
    assert MODELS[0] in capsys.readouterr().err

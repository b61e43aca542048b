"""examples/generate.py from end to end at a tiny size, and its answers."""

import runpy
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from mar_snn.llamba.cache import CACHE_NAME
from mar_snn.sparse import EventLinear, optimize_for_decoding

PATH = Path(__file__).parent.parent / "examples" / "generate.py"


@pytest.fixture(scope="module")
def example(load_example) -> ModuleType:
    return load_example("generate")


@pytest.fixture(autouse=True)
def _the_same_everywhere(example, monkeypatch):
    """A console whose lines are not broken, and a path that no clock decides on."""
    monkeypatch.setattr(example, "console", Console(width=120))
    always = partial(optimize_for_decoding, break_even=1.0)
    monkeypatch.setattr(example, "optimize_for_decoding", always)


@pytest.fixture
def arguments(llambas, monkeypatch):
    """Put the command into sys.argv: the spiking model beside the dense one."""

    def put(*more: object, model: object = llambas["spiking"]) -> None:
        always = ("--teacher", llambas["dense"], "--device", "cpu")
        words = ["generate.py", model, *always, "--max_new_tokens", 6, *more]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])

    return put


def lines(text):
    """The rows of the last table, by their first cell."""
    rows = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_a_turn_shows_the_cost_of_both_models(example, arguments, capsys):
    arguments("--prompt", "some words")
    assert example.main() == 0
    found = lines(capsys.readouterr().out)
    spiking, dense = found["spikes per neuron and step"]
    assert 0 < float(spiking) < 1
    assert dense == "-"
    operations, none = (float(cell.split()[0]) for cell in found["synaptic operations"])
    assert operations > 0
    assert none == 0
    few, many = (float(cell.split()[0]) for cell in found["multiply-accumulates"])
    assert few < many
    assert all(float(cell) > 0 for cell in found["tokens per second"])
    assert "modelled energy, horowitz-45nm-fp32" in found


def test_the_reply_is_what_generate_gives(example, arguments, llambas, capsys):
    arguments("--prompt", "some words")
    assert example.main() == 0
    tokenizer = AutoTokenizer.from_pretrained(llambas["spiking"])
    model = AutoModelForCausalLM.from_pretrained(llambas["spiking"])
    ids = tokenizer("some words", return_tensors="pt").input_ids
    told = model.generate(ids, max_new_tokens=6, do_sample=False)
    expected = tokenizer.decode(told[0, ids.shape[1] :], skip_special_tokens=True)
    assert expected.strip() in capsys.readouterr().out


def test_turns_go_on_from_the_cache(example, arguments, llambas, capsys):
    arguments("--prompt", "some words", "and more", "--dense")
    options = example.parse_arguments()
    talker = next(example.load_talkers(options))
    for prompt in options.prompt:
        talker.reply(prompt, options, silent=True)
    # all tokens but the last, which nobody has asked about yet
    assert talker.cache.get_seq_length() == talker.ids.shape[1] - 1
    model, ids = talker.model, torch.empty(1, 0, dtype=torch.long)
    for prompt in options.prompt:
        said = talker.tokenizer(prompt, return_tensors="pt").input_ids
        ids = torch.cat([ids, said], dim=1)
        ids = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(talker.ids, ids)


@pytest.mark.parametrize(
    ("option", "event_driven", "int8"),
    [("--seed=1", True, False), ("--int8", True, True), ("--dense", False, False)],
)
def test_the_path_is_the_one_asked_for(
    example, arguments, option, event_driven, int8, capsys
):
    arguments("--prompt", "x", option)
    student, teacher = example.load_talkers(example.parse_arguments())
    found = [m for m in student.model.modules() if isinstance(m, EventLinear)]
    assert bool(found) == event_driven
    assert any(m.weight_int8 is not None for m in found) == int8
    assert not any(isinstance(m, EventLinear) for m in teacher.model.modules())
    student.reply("some words", example.parse_arguments(), silent=True)
    moved = student.cost().moved
    assert moved.weight_touched < moved.weight_dense
    assert capsys.readouterr().out.count("event-driven up to") == 4 * event_driven


def test_sampling_is_seeded(example, arguments, monkeypatch):
    said = []
    for seed in (0, 0, 1):
        arguments("--prompt", "words", "--temperature", "2", "--seed", seed, "--dense")
        monkeypatch.setattr(example, "take_turn", partial(keep, said))
        assert example.main() == 0
    assert said[0] == said[1] != said[2]


def keep(said, talkers, prompt, options):
    """In the place of a turn: what the student answers."""
    talkers[0].reply(prompt, options, silent=True)
    said.append(talkers[0].ids.tolist())


def test_the_teacher_has_the_dtype_of_the_student(
    example, arguments, llambas, tmp_path
):
    teacher = AutoModelForCausalLM.from_pretrained(llambas["dense"], dtype="bfloat16")
    teacher.save_pretrained(tmp_path)
    arguments("--prompt", "x", "--teacher", tmp_path)
    talkers = example.load_talkers(example.parse_arguments())
    assert [talker.model.dtype for talker in talkers] == [torch.float32] * 2


def test_it_asks_until_nothing_is_said(example, arguments, monkeypatch, capsys):
    said = iter(["some words", ""])
    monkeypatch.setattr(example.console, "input", lambda _: next(said))
    arguments()
    assert example.main() == 0
    assert capsys.readouterr().out.count("tokens per second") == 1

    def end(_):
        raise EOFError

    monkeypatch.setattr(example.console, "input", end)
    assert example.main() == 0


def test_a_chat_model_is_given_its_template(example, arguments):
    arguments("--prompt", "hello")
    talker = next(example.load_talkers(example.parse_arguments()))
    talker.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    text = talker.tokenizer.decode(talker._encoded("hello")[0])
    assert text == "<user>hello<assistant>"


class Told(dict):
    """What generate returns: its parts are attributes too."""

    __getattr__ = dict.__getitem__


CHAT = (
    'S"{% for m in messages %}<{{ m.role }}>{{ m.content }}"{% endfor %}'
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def converse(example, arguments, monkeypatch):
    """Two turns by a template whose messages end with a quotation mark, a token.

    The model says the same each time; returned is what it was given to read.
    """

    def converse(template: str, said: str) -> list[tuple[str, Any]]:
        arguments("--dense")
        options = example.parse_arguments()
        talker = next(example.load_talkers(options))
        talker.tokenizer.add_special_tokens({"additional_special_tokens": ['"']})
        talker.tokenizer.chat_template = template
        calls = []

        def generate(ids, **given):
            calls.append((talker.tokenizer.decode(ids[0]), given))
            answer = torch.tensor([talker.tokenizer(said).input_ids])
            sequences = torch.cat([ids, answer], dim=1)
            return Told(sequences=sequences, **{CACHE_NAME: len(calls)})

        monkeypatch.setattr(talker.model, "generate", generate)
        for prompt in ("hello", "more"):
            talker.reply(prompt, options, silent=True)
        return calls

    return converse


@pytest.mark.parametrize("said", ["fine", 'fine"'])
def test_a_conversation_is_one_text_of_the_template(converse, said):
    (first, opening), (second, going_on) = converse(CHAT, said)
    assert first == 'S"<user>hello"<assistant>'
    # one system prompt, and a reply that is closed, by the model or by the template
    assert second == 'S"<user>hello"<assistant>fine"<user>more"<assistant>'
    assert CACHE_NAME not in opening
    assert going_on[CACHE_NAME] == 1
    # the model's own end of text is 0; the template puts token 1 behind an answer
    assert opening["eos_token_id"] == going_on["eos_token_id"] == [0, 1]


def test_what_a_template_writes_anew_is_read_anew(converse):
    template = CHAT.replace(
        "m.content }}", "m.content | upper if not loop.last else m.content }}"
    )
    (_, _), (second, going_on) = converse(template, "fine")
    assert second == 'S"<user>HELLO"<assistant>FINE"<user>more"<assistant>'
    assert CACHE_NAME not in going_on


def test_a_template_that_refuses_is_a_sentence(converse):
    with pytest.raises(ValueError, match="the chat template refuses this: no users"):
        converse("{{ raise_exception('no users') }}", "fine")


def test_a_reply_of_one_token_has_no_speed(example, byte_tokenizer):
    watch = example.Stopwatch(byte_tokenizer(), silent=True)
    for token in ([1, 2], [3]):
        watch.put(torch.tensor(token))
    assert str(watch.tokens_per_second()) == "nan"


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("dense", "holds a dense model: load it with from_pretrained"),
        ("no/such/folder", "no/such/folder"),
    ],
)
def test_models_that_cannot_talk_are_named(
    example, arguments, llambas, model, sentence, capsys
):
    arguments("--prompt", "x", model=llambas.get(model, model))
    assert example.main() == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert sentence in message


@pytest.mark.parametrize("device", ["cuda:99", "gpu0", "meta"])
def test_a_device_that_is_not_there_is_named(example, arguments, device, capsys):
    arguments("--prompt", "x", "--device", device)
    assert example.main() == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: there is no device '{device}' here: ")
    assert "; this machine has cpu" in line
    assert line.count("\n") == 1


def test_a_tokenizer_of_another_model_is_refused(
    example, arguments, byte_tokenizer, tmp_path, capsys
):
    byte_tokenizer(["<more>"]).save_pretrained(tmp_path)
    arguments("--prompt", "x", "--dense", "--tokenizer", tmp_path)
    assert example.main() == 2
    sentence = "the tokenizer has 257 tokens, the spiking model knows 256"
    assert sentence in capsys.readouterr().err


def test_ctrl_c_in_a_reply_ends_the_conversation(
    example, arguments, monkeypatch, capsys
):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(example, "take_turn", interrupt)
    arguments("--prompt", "x", "--dense")
    assert example.main() == 130
    errors = capsys.readouterr().err
    assert errors.endswith("\nInterrupted: the conversation is not kept\n")


def test_without_the_demos_student_the_command_that_makes_it_is_named(
    example, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate.py", "--prompt", "x"])
    assert example.main() == 2
    assert "run examples/distill_llamba.py (make demo)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (("--max_new_tokens", "1"), "--max_new_tokens must be 2 or more, got 1"),
        (("--prompt", "x", ""), "--prompt must not be empty"),
        (("--threads", "-1"), "--threads must be 1 or more, got -1"),
        (("--threads", "0"), "--threads must be 1 or more, got 0"),
        (("--seed", "-1"), "--seed must be from 0 to 2**32 - 1, got -1"),
        (("--temperature", "nan"), "--temperature must be 0 or more, got nan"),
        (("--temperature", "-1"), "--temperature must be 0 or more, got -1.0"),
        (("--int8", "--dense"), "--int8 is an option of the path that --dense turns"),
    ],
)
def test_options_that_cannot_be_say_so(example, arguments, wrong, sentence, capsys):
    arguments(*wrong)
    with pytest.raises(SystemExit) as stop:
        example.main()
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


def test_it_runs_as_a_script(arguments, capsys):
    arguments("--prompt", "x", model="no/such/folder")
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(PATH), run_name="__main__")
    assert stop.value.code == 2

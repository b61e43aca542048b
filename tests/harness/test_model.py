"""MarLM: the same log-likelihoods and texts as the model itself gives."""

import copy
import subprocess
import sys
from string import ascii_letters
from types import SimpleNamespace

import lm_eval
import psutil
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from mar_snn.harness import MarLM, evaluate, file_tasks, load_tasks
from mar_snn.harness.tasks import task_manager
from mar_snn.llamba import LlambaForCausalLM
from mar_snn.spiking import SpikingConfig, calibrate, coders, spikify

KINDS = ("dense", "spiking")


def ask(lm, method, *arguments):
    """Answers of a MarLM to requests of one kind."""
    requests = [
        Instance(request_type=method, doc={}, arguments=a, idx=i)
        for i, a in enumerate(arguments)
    ]
    return getattr(lm, method)(requests, disable_tqdm=True)


def log_likelihood(lm, tokens, start):
    """Sum of the log-probabilities of tokens[start:], and whether each is the best."""
    with torch.no_grad():
        log_p = lm.model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    places = range(start, len(tokens))
    total = sum(log_p[i - 1, tokens[i]].item() for i in places)
    return total, all(log_p[i - 1].argmax().item() == tokens[i] for i in places)


def test_lm_eval_knows_the_model_by_its_name():
    assert get_model("mar") is MarLM


@pytest.mark.parametrize("kind", KINDS)
def test_a_log_likelihood_is_the_sum_over_the_tokens_of_the_continuation(kind, make_lm):
    lm = make_lm(kind)
    pairs = [("The sky is", " blue"), ("a", " much longer continuation"), ("", "b c")]
    found = ask(lm, "loglikelihood", *pairs)
    for (context, continuation), (total, greedy) in zip(pairs, found, strict=True):
        # without a context, what comes before is the end of another text
        before = lm.tok_encode(context) or [lm.eot_token_id]
        tokens = before + lm.tok_encode(continuation)
        by_hand = log_likelihood(lm, tokens, len(before))
        assert total == pytest.approx(by_hand[0], abs=1e-4)
        assert greedy is by_hand[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_most_likely_continuation_is_greedy_and_another_is_not(kind, make_lm):
    lm = make_lm(kind)
    for context in ascii_letters:
        with torch.no_grad():
            logits = lm.model(torch.tensor([lm.tok_encode(context)])).logits[0, -1]
        best, second = (lm.tok_decode([i]) for i in logits.topk(2).indices.tolist())
        if best.isascii() and second.isascii():
            break
    found = ask(lm, "loglikelihood", (context, best), (context, second))
    assert [greedy for _, greedy in found] == [True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_a_rolling_log_likelihood_predicts_every_token_once(kind, make_lm):
    lm = make_lm(kind, max_length=8)
    text = "nineteen characters"
    tokens = lm.tok_encode(text)
    assert len(tokens) == 19
    # 8 tokens behind an end of text, 8 behind the last of them, 3 in a full window
    by_hand = (
        log_likelihood(lm, [lm.eot_token_id, *tokens[:8]], 1)[0]
        + log_likelihood(lm, tokens[7:16], 1)[0]
        + log_likelihood(lm, tokens[10:19], 6)[0]
    )
    (found,) = ask(lm, "loglikelihood_rolling", (text,))
    assert found == pytest.approx(by_hand, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_contexts_is_continued_as_each_alone(kind, make_lm):
    lm = make_lm(kind)
    contexts = ["ab", "a much longer context", "c"]
    options = {"until": ["\0"], "max_gen_toks": 6, "do_sample": False}
    found = ask(lm, "generate_until", *((c, dict(options)) for c in contexts))
    for context, text in zip(contexts, found, strict=True):
        tokens = lm.tok_encode(context)
        start = len(tokens)
        for _ in range(6):
            with torch.no_grad():
                logits = lm.model(torch.tensor([tokens]), use_cache=False).logits
            tokens.append(logits[0, -1].argmax().item())
            if tokens[-1] == lm.eot_token_id:
                break
        assert text == lm.tok_decode(tokens[start:])


def test_generation_ends_at_a_stop_sequence(make_lm):
    lm = make_lm()
    (text,) = ask(lm, "generate_until", ("ab", {"until": [], "max_gen_toks": 8}))
    assert len(text) > 2
    options = {"until": [text[1]], "max_gen_toks": 8}
    (cut,) = ask(lm, "generate_until", ("ab", options))
    assert cut == text[: text.index(text[1])]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_do_not_depend_on_the_batch_size(kind, make_lm):
    pairs = [("ab" * n, f" {n} and more") for n in range(1, 12)]
    one, *others = (
        ask(make_lm(kind, batch_size=size), "loglikelihood", *pairs)
        for size in (1, 3, "auto")
    )
    for other in others:
        for (expected, greedy), (found, same) in zip(one, other, strict=True):
            assert found == pytest.approx(expected, abs=1e-4)
            assert same is greedy


# ---- what is loaded


def test_a_spiking_model_is_float32_unless_asked_and_a_dense_one_as_its_files(
    llambas, tmp_path, make_lm
):
    for kind in KINDS:
        model = LlambaForCausalLM.from_pretrained(llambas[kind]).bfloat16()
        model.save_pretrained(tmp_path / kind)
        make_lm(kind).tokenizer.save_pretrained(tmp_path / kind)
    found = {kind: MarLM(str(tmp_path / kind)) for kind in KINDS}
    assert found["spiking"].model.dtype == torch.float32
    assert found["spiking"].spiking.time_steps == 4
    assert found["dense"].model.dtype == torch.bfloat16
    assert found["dense"].spiking is None
    asked = MarLM(str(tmp_path / "spiking"), dtype="bfloat16")
    assert asked.model.dtype == torch.bfloat16


def test_a_loaded_model_is_taken_as_it_is(llambas, make_lm):
    model = LlambaForCausalLM.from_pretrained(llambas["spiking"])
    lm = MarLM(model, tokenizer=make_lm().tokenizer, batch_size=2)
    pair = ("The sky is", " blue")
    assert lm.model is model
    assert ask(lm, "loglikelihood", pair)[0][0] == pytest.approx(
        ask(make_lm("spiking"), "loglikelihood", pair)[0][0], abs=1e-5
    )


def test_a_spiking_model_of_another_package_is_not_read_as_a_dense_one(
    tmp_path, make_lm
):
    tokenizer = make_lm().tokenizer
    config = Qwen3Config(
        vocab_size=256,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.3,
    )
    model = spikify(Qwen3ForCausalLM(config).eval(), SpikingConfig(time_steps=2))
    calibrate(model, [{"input_ids": torch.randint(256, (4, 20))}])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm = MarLM(str(tmp_path), device="cpu", batch_size=1)
    assert lm.spiking == SpikingConfig(time_steps=2, sites=lm.spiking.sites)
    assert len(list(coders(lm.model))) == 4
    loaded = MarLM(model, tokenizer=tokenizer, batch_size=1)
    pair = ("The sky is", " blue")
    assert ask(lm, "loglikelihood", pair) == ask(loaded, "loglikelihood", pair)


def test_a_model_that_is_made_to_spike_is_known_to(make_lm):
    lm = make_lm()
    dense = lm.fingerprint()
    spikify(lm.model, SpikingConfig(time_steps=3))
    assert lm.spiking.time_steps == 3
    assert lm.fingerprint() != dense


def test_a_context_is_2048_tokens_unless_asked(make_lm):
    lm = make_lm()
    lm.tokenizer.model_max_length = 131072
    assert lm.max_length == 2048
    assert make_lm(max_length=77).max_length == 77


def test_an_answer_longer_than_a_context_is_refused(make_lm):
    lm = make_lm(max_length=5)
    assert ask(lm, "loglikelihood", ("a long context", "five."))
    with pytest.raises(ValueError, match=r"6 tokens and a context 5.*larger max_len"):
        ask(lm, "loglikelihood", ("a long context", "sixes."))


@pytest.mark.parametrize("device", ["cuda:99", "gpu0"])
def test_a_device_that_is_not_there_is_no_fault_of_the_model(make_lm, device):
    with pytest.raises(ValueError, match=f"there is no device '{device}' here"):
        make_lm(device=device)


def test_what_cannot_be_judged_is_one_sentence(tmp_path, llambas, make_lm):
    with pytest.raises(ValueError, match=r"nowhere is no causal language model"):
        MarLM(str(tmp_path / "nowhere"))
    make_lm().tokenizer.save_pretrained(tmp_path / "vision")
    (tmp_path / "vision" / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match=r"vision is no causal language model"):
        MarLM(str(tmp_path / "vision"))
    LlambaForCausalLM.from_pretrained(llambas["dense"]).save_pretrained(tmp_path / "x")
    with pytest.raises(ValueError, match=r"no causal language model with a tokenizer"):
        MarLM(str(tmp_path / "x"))


def test_a_tokenizer_of_another_model_is_refused(llambas, byte_tokenizer):
    other = byte_tokenizer([f"<{i}>" for i in range(8)])
    with pytest.raises(ValueError, match=r"knows 256 tokens and its tokenizer has 264"):
        MarLM(str(llambas["dense"]), tokenizer=other)
    mute = byte_tokenizer()
    mute.eos_token = None
    mute.bos_token = "a"
    with pytest.raises(ValueError, match=r"has no end-of-text token"):
        MarLM(str(llambas["dense"]), tokenizer=mute)


def test_without_lm_eval_the_error_names_the_extra():
    code = (
        "import importlib.util as u; real = u.find_spec; "
        "u.find_spec = lambda n, *a: None if n == 'lm_eval' else real(n, *a); "
        "import mar_snn.harness"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    assert "pip install 'mar-snn[eval]'" in run.stderr


# ---- batch size


@pytest.mark.parametrize(
    ("gib", "length", "expected"),
    [
        (64, 1, 64),  # never more than max_batch_size
        (64, 256, 16),  # 4096 tokens
        (64, 4000, 1),
        # a token takes 4 * (3 * 256 + 16 * 16) = 4096 bytes: half of this is 64 of them
        (2**-11, 16, 4),
        (2**-11, 100, 1),  # at least one
    ],
)
def test_a_cpu_detects_the_batch_that_fits_its_memory(
    gib, length, expected, make_lm, monkeypatch
):
    lm = make_lm(batch_size="auto", max_length=8000)
    free = SimpleNamespace(available=int(gib * 2**30))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    # the last token is only predicted
    request = (None, [1] * (length - 1), [2, 3])
    assert lm._detect_batch_size([request]) == expected


def test_without_requests_the_batch_is_of_whole_contexts(make_lm):
    assert make_lm(batch_size="auto", max_length=512)._detect_batch_size() == 8


# ---- fingerprint


def test_a_fingerprint_is_of_the_weights_and_of_what_is_done_with_them(make_lm):
    lm = make_lm("spiking")
    first = lm.fingerprint()
    assert make_lm("spiking", batch_size=1).fingerprint() == first
    others = [make_lm(), make_lm("spiking", max_length=99)]
    others += [make_lm("spiking", dtype="bfloat16"), make_lm("spiking")]
    with torch.no_grad():
        next(others[-1].model.parameters()).view(-1)[0] += 1e-3
    others.append(make_lm("spiking"))
    others[-1].tokenizer.add_tokens("sky")
    others.append(make_lm("spiking"))
    spiking = copy.copy(others[-1].config.spiking)
    object.__setattr__(spiking, "tau", 0.6)
    others[-1].config.spiking = spiking
    assert len({first, *(other.fingerprint() for other in others)}) == 7


# ---- through lm_eval's own front doors


@pytest.mark.parametrize("kind", KINDS)
def test_simple_evaluate_takes_a_name_and_arguments(
    kind, llambas, make_lm, rows, write_tasks
):
    folder = write_tasks(by_hand=rows)
    found = lm_eval.simple_evaluate(
        model="mar",
        model_args={"pretrained": str(llambas[kind]), "dtype": "float32"},
        tasks=[file_tasks(folder)["by_hand"]],
        task_manager=task_manager(everything=False),
        batch_size=2,
    )
    score = evaluate(make_lm(kind), load_tasks(folder=folder))["by_hand"]
    assert found["results"]["by_hand"]["acc,none"] == score.value


@pytest.mark.slow
def test_the_command_line_of_lm_eval_knows_the_model(llambas, tmp_path):
    (tmp_path / "text.txt").write_text("a line\n")
    (tmp_path / "by_hand.yaml").write_text(
        "task: by_hand\n"
        "dataset_path: text\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/text.txt}}}}\n"
        "test_split: test\n"
        "output_type: loglikelihood_rolling\n"
        'doc_to_text: ""\n'
        "doc_to_target: text\n"
        "metric_list: [{metric: byte_perplexity}]\n"
    )
    command = (
        f"-m mar_snn.harness --model mar --model_args pretrained={llambas['spiking']} "
        f"--include_path {tmp_path} --tasks by_hand --device cpu"
    )
    run = subprocess.run(
        [sys.executable, *command.split()], capture_output=True, text=True, check=True
    )
    assert f"mar ({{'pretrained': '{llambas['spiking']}'}})" in run.stdout
    assert "byte_perplexity" in run.stdout

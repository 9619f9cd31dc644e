"""What the arguments of lm-eval name is loaded, without lm-eval."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import types

import pytest

from cycleqd_jax import lm_eval
from cycleqd_jax.engine import TextScorer
from cycleqd_jax.lm_eval.model import _generation as generation_options
from cycleqd_jax.types import InputError


@pytest.mark.exhaustive
def test_a_folder_with_and_without_a_chat_template(folder, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(folder, plain)
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    first = lm_eval.load(pretrained=str(folder), run=None, child=None, dtype=None)
    second = lm_eval.load(pretrained=str(plain), run=None, child=None, dtype=None)
    assert second.tokenizer.chat_template is None
    assert second.stop_ids == first.stop_ids
    pairs = [("Question: which animal?\nAnswer:", " owl"), ("", " owl"), ("Question: ", "which"), ("a", "b c")]
    scorers = [TextScorer(lm_eval.make_engine(m, slots=2, max_length=64), m.tokenizer) for m in (first, second)]
    assert scorers[0].score(pairs) == scorers[1].score(pairs)
    begin, end = scorers[0].encode_pair("Question: ", "which")
    assert scorers[0].decode(begin) == "Question:"
    assert scorers[0].decode(end) == " which"


@pytest.mark.exhaustive
def test_the_numbers_of_a_text_scorer(folder):
    model = lm_eval.load(pretrained=str(folder), run=None, child=None, dtype="float32")
    scorer = TextScorer(lm_eval.make_engine(model, slots=None, max_length=None), model.tokenizer)
    assert scorer.engine.slots == 16
    assert scorer.engine.max_len == 128
    (whole,) = scorer.score_rolling(["which animal"])
    (parts,) = scorer.score([("<|begin_of_text|>", "<|begin_of_text|>which animal")])
    assert whole.tokens == len(scorer.encode("which animal"))
    assert parts.tokens >= 1
    assert scorer.encode("<|begin_of_text|>a") == scorer.encode("a")  # bos is not added twice
    (text,) = scorer.generate(["Question: which animal?"], 8)
    (cut,) = scorer.generate(["Question: which animal?"], 8, stop=[text[2:4]])
    assert cut == text[: text.index(text[2:4])]
    with pytest.raises(InputError, match="fewer new tokens than the engine's max_len = 128, got 128"):
        scorer.generate(["a"], 128)
    with pytest.raises(InputError, match="drop an empty continuation"):
        scorer.score([("a", "")])


def scorer_of(folder, **changes):
    model = lm_eval.load(pretrained=str(folder), run=None, child=None, dtype="float32")
    model = model._replace(**changes)
    return TextScorer(lm_eval.make_engine(model, slots=2, max_length=64), model.tokenizer)


def test_a_stop_string_that_is_a_special_token_ends_the_text(folder):
    scorer = scorer_of(folder)
    special = scorer.tokenizer.convert_tokens_to_ids("<|start_header_id|>")  # not a stop token
    stop_when = scorer._ends_at(["<|start_header_id|>", "cat"])
    first, *more = scorer.encode("dog", special=False)
    assert stop_when([first, *more]) is None
    assert stop_when([first, special, *more]) == 2
    assert scorer.decode([first, special]) == scorer.decode([first])
    assert scorer._ends_at(["header"])([first, special]) is None  # the name of another token is no text


def test_a_context_that_is_refused_leaves_no_request(folder, monkeypatch):
    scorer = scorer_of(folder)
    whole = scorer.generate(["which animal"], 4)
    with monkeypatch.context() as patch:
        patch.setattr(scorer, "encode", lambda text: [2] if text == "a" else [10**6])
        with pytest.raises(InputError, match="1000000"):
            scorer.generate(["a", "b"], 4)
    assert not scorer.engine.busy
    assert scorer.generate(["which animal"], 4) == whole


def test_repeats_of_a_sampled_context_differ(folder):
    scorer = scorer_of(folder)
    texts = scorer.generate(["which animal"] * 4 + ["Question"], 12, temperature=2.0, seed=2**32 - 1)
    assert len(set(texts[:4])) > 1
    assert texts[:1] == scorer.generate(["which animal"], 12, temperature=2.0, seed=2**32 - 1)


def test_without_lm_eval_the_error_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval.api.registry", None)
    assert lm_eval.main() == 2
    assert "pip install 'cycleqd_jax[lm-eval]'" in capsys.readouterr().err


def failing_harness(monkeypatch, error):
    """lm-eval's command line, which raises an error."""

    def cli_evaluate():
        raise error

    monkeypatch.setattr(lm_eval, "register", lambda: None)
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", types.SimpleNamespace(cli_evaluate=cli_evaluate))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_errors_of_the_disk_are_one_sentence(monkeypatch, capsys, number):
    hidden = RuntimeError("the cache can't be written")
    hidden.__cause__ = OSError(number, os.strerror(number), "out/results.json")
    for error in (OSError(number, os.strerror(number), "out/results.json"), hidden):
        failing_harness(monkeypatch, error)
        assert lm_eval.main() == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith(f"error: expected to read and write files, got {os.strerror(number)} in out/results.json; free")


def test_other_errors_keep_their_traceback_and_ctrl_c_has_its_code(monkeypatch, capsys):
    failing_harness(monkeypatch, ZeroDivisionError("x"))
    with pytest.raises(ZeroDivisionError):
        lm_eval.main()
    failing_harness(monkeypatch, KeyboardInterrupt())
    assert lm_eval.main() == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_full_standard_output(monkeypatch, capsys):
    monkeypatch.setattr(lm_eval, "register", lambda: None)
    with open("/dev/full", "w") as full:
        monkeypatch.setitem(sys.modules, "lm_eval.__main__", types.SimpleNamespace(cli_evaluate=lambda: print("table")))
        monkeypatch.setattr(sys, "stdout", full)
        assert lm_eval.main() == 2
    assert "got No space left on device; free" in capsys.readouterr().err


class Wanted:
    def __init__(self, *args):
        self.args = args


def harness_model(folder):
    model = lm_eval.HarnessModel(pretrained=str(folder), max_length=64)
    model.cache_hook = types.SimpleNamespace(add_partial=lambda *_: None)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"max_gen_toks": "abc"},
        {"max_gen_toks": 2.5},
        {"temperature": "x"},
        {"temperature": 10**400},
        {"top_p": "x"},
        {"seed": "x"},
        {"do_sample": "false", "temperature": 0.5},
        {"until": ["a", 3]},
        {"until": {"a": 1}},
    ],
)
def test_generation_options_of_other_types_are_named(options):
    with pytest.raises(InputError, match=f"as {next(iter(options))}, got .* in generation_kwargs; correct it"):
        generation_options(options, 8)
    assert generation_options({"max_gen_toks": 64.0}, 8)["max_new_tokens"] == 64
    empty = dict.fromkeys(("until", "max_gen_toks", "temperature", "top_p", "seed", "do_sample"))
    assert generation_options(empty, 8) == {"stop": [], "max_new_tokens": 8, "temperature": 0.0, "top_p": 1.0, "seed": 0}


def test_a_template_that_refuses_system_messages_gets_the_others(folder, tmp_path, caplog):
    shutil.copytree(folder, tmp_path / "model")
    refusing = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    (tmp_path / "model/chat_template.jinja").write_text(refusing + "[{{ m['content'] }}]{% endfor %}")
    model = harness_model(tmp_path / "model")
    conversation = [{"role": "system", "content": "S"}, {"role": "user", "content": "u"}]
    assert model.apply_chat_template(conversation) == "[u]"
    assert model.apply_chat_template(conversation) == "[u]"
    assert caplog.text.count("no system") == 1
    two = "{% if messages | length > 1 %}{{ raise_exception('two') }}{% endif %}{{ messages[0]['content'] }}"
    (tmp_path / "model/chat_template.jinja").write_text(two)
    with pytest.raises(InputError, match="renders the conversations, got two; correct it"):
        harness_model(tmp_path / "model").apply_chat_template([*conversation, conversation[-1]])


def test_a_tokenizer_without_eos_generates(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model/tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("eos_token")
    path.write_text(json.dumps(config))
    (tmp_path / "model/special_tokens_map.json").unlink(missing_ok=True)
    model = harness_model(tmp_path / "model")
    assert model.eot_token_id is None
    request = Wanted("Question: which animal?", {"until": ["zz"], "max_gen_toks": 4})
    assert model.generate_until([request]) == harness_model(folder).generate_until([request])


def test_a_gguf_file_without_a_chat_template(tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf", reason="the gguf package, which writes the test file, is not installed")
    from ..tiny_gguf import write

    monkeypatch.setattr(gguf.GGUFWriter, "add_chat_template", lambda self, template: None)
    file = write(tmp_path / "plain.gguf", gguf.GGMLQuantizationType.F32)
    found = lm_eval.load(pretrained=str(file), run=None, child=None, dtype=None)
    assert found.tokenizer.chat_template is None
    assert found.stop_ids == (2,)

"""What the arguments of lm-eval name is loaded, without lm-eval."""

from __future__ import annotations

import errno
import os
import sys
import types

import pytest

from cycleqd_jax import lm_eval
from cycleqd_jax.engine import TextScorer
from cycleqd_jax.types import InputError


@pytest.mark.exhaustive
def test_a_folder_with_and_without_a_chat_template(folder, tmp_path):
    import shutil

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

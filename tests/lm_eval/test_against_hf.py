"""The model ``cycleqd`` gives the numbers of lm-evaluation-harness's model ``hf``, request by request."""

from __future__ import annotations

import re
import warnings

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed; the extra lm-eval brings it")
pytest.importorskip("torch", reason="torch, which the model hf computes with, is not installed")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]

CHOICE = ("tiny_choice", "tiny_rolling", "tiny_generate")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Datasets reads these when it is first imported."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def evaluate(model, model_args, tasks, names=CHOICE, **options):
    import lm_eval
    from lm_eval.tasks import TaskManager

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lm_eval.simple_evaluate(
            model=model,
            model_args=model_args,
            tasks=list(names),
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            batch_size=4,
            device="cpu",
            log_samples=True,
            bootstrap_iters=0,
            **options,
        )


def compare(ours, theirs, names=CHOICE):
    for name in names:
        for one, other in zip(ours["samples"][name], theirs["samples"][name], strict=True):
            assert one["arguments"] == other["arguments"]
            got, want = one["filtered_resps"], other["filtered_resps"]
            if name == "tiny_generate":
                assert got == want
            elif name == "tiny_choice":
                assert [x[1] for x in got] == [x[1] for x in want]
                assert [float(x[0]) for x in got] == pytest.approx([float(x[0]) for x in want], abs=1e-4)
            else:
                # hf adds in float32: around 500 its numbers are 6e-5 apart.
                assert [float(x) for x in got] == pytest.approx([float(x) for x in want], abs=1e-4, rel=1e-6)
        for key, value in theirs["results"][name].items():
            if isinstance(value, float):
                assert ours["results"][name][key] == pytest.approx(value, rel=1e-5), key


@pytest.fixture(scope="module")
def registered():
    from cycleqd_jax.lm_eval import register

    register()
    register()  # a second time is no error


@pytest.mark.parametrize("template", [False, True])
def test_every_kind_of_request(registered, folder, tasks, template):
    options = {"apply_chat_template": True, "fewshot_as_multiturn": True} if template else {}
    names = CHOICE[::2] if template else CHOICE
    ours = evaluate("cycleqd", f"pretrained={folder},dtype=float32", tasks, names, **options)
    theirs = evaluate("hf", f"pretrained={folder},dtype=float32", tasks, names, **options)
    compare(ours, theirs, names)


def test_arguments_that_are_refused(registered, folder):
    from lm_eval.api.registry import get_model

    from cycleqd_jax.types import InputError

    def make(text):
        return get_model("cycleqd").create_from_arg_string(text)

    for text, message in {
        f"pretrained={folder},dtpye=float32": "got 'dtpye' in --model_args; did you mean dtype?",
        f"pretrained={folder},run=x": "either pretrained=MODEL or run=FOLDER with or without child=ID, got pretrained and run",
        "dtype=float32": "got neither in --model_args",
        f"pretrained={folder},child=3": "got pretrained and child",
        f"pretrained={folder},batch_size=many": "a batch_size of at least 1, or auto, got 'many'",
        f"pretrained={folder},dtype=float99": "a dtype (float32, bfloat16, float16), got 'float99'",
        "run=x,child=first": "a whole number as child, got 'first'",
        f"pretrained={folder},prefix_token_id=bos": "a whole number as prefix_token_id, got 'bos'",
        f"pretrained={folder},prefix_token_id=1000000": "a prefix_token_id below",
        f"pretrained={folder},add_bos_token=maybe": "True or False as add_bos_token, got 'maybe'",
        f"pretrained={folder},max_length=4096": "model's 128 positions",
    }.items():
        with pytest.raises(InputError, match=re.escape(message)):
            make(text)

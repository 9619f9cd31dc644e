"""The reference of all keys is complete and agrees with the loader."""

from __future__ import annotations

import doctest
import re

import pytest

from cycleqd_jax.config import MaskConfig, describe, load, load_config, reference, to_dict
from cycleqd_jax.types import InputError

from .conftest import MINIMAL

DOCS = {doc.key: doc for doc in describe()}


def keys(tree: dict, prefix: str = "") -> list[str]:
    found = []
    for name, value in tree.items():
        found.append(f"{prefix}{name}")
        if isinstance(value, dict) and name != "options":
            found += keys(value, f"{prefix}{name}.")
        if name == "tasks":
            found += keys(value[0], f"{prefix}{name}.*.")
    return found


def test_every_key_is_described():
    optional = {"model": {"prepare": {}}, "gradient": {}, "search": {"racing": {}}}
    tree = to_dict(load_config(MINIMAL | optional))
    tree["masks"] = to_dict(MaskConfig())  # language models have none
    assert sorted(DOCS) == sorted(keys(tree))


@pytest.mark.parametrize("key", DOCS)
def test_every_key_has_a_sentence(key):
    assert re.fullmatch(r"\S.{8,}\.", DOCS[key].text)
    assert "  " not in DOCS[key].text


def test_a_description_of_several_lines():
    assert DOCS["model.vocab_size"].text == (
        "number of rows to keep of every embedding and output head, for padded vocabularies. Null keeps all."
    )


@pytest.mark.parametrize(
    ("key", "kind", "default", "values"),
    [
        ("name", "str", None, ""),
        ("seed", "int", 0, "at least 0 and below 4294967296"),
        ("tasks", "list of section", None, ""),
        ("tasks.*.train_size", "int or null", 32, "at least 1"),
        ("tasks.*.validation_size", "int or null", 32, "at least 0"),
        ("tasks.*.options", "mapping", {}, ""),
        ("model", "section", None, ""),
        ("model.experts", "mapping to str or null", None, ""),
        ("model.prepare", "section or null", None, ""),
        ("model.prepare.steps", "int", 300, "at least 1"),
        ("model.prepare.shares", "mapping to float or null", None, "at least 0"),
        ("gradient", "section or null", None, ""),
        ("gradient.learning_rate", "float", 0.02, "above 0"),
        ("model.dtype", "str or null", None, "one of float32, bfloat16, float16"),
        ("baselines", "list of str", [], "one of finetune_all, finetune_all_longer"),
        ("merges", "list of str", [], "one of task_arithmetic, ties, dare, dare_ties, slerp"),
        ("search.selection", "str", "elite", "one of elite, uniform"),
        ("search.cells", "int or null", None, "at least 2 and at most 1000000"),
        ("search.bounds", "mapping to list of float or null", None, ""),
        ("mesh.tensor", "int", 1, "at least 1, or -1"),
        ("sandbox.wall_s", "float", 5.0, "above 0"),
    ],
)
def test_types_defaults_and_ranges(key, kind, default, values):
    doc = DOCS[key]
    assert (doc.type, doc.default, doc.range) == (kind, default, values)


def test_required_keys():
    assert [doc.key for doc in describe() if doc.required] == ["name", "tasks", "tasks.*.name"]


def test_sections_come_before_their_keys():
    order = list(DOCS)
    assert order.index("model") < order.index("model.tiny") < order.index("model.tiny.breadth") < order.index("model.dtype")


@pytest.mark.parametrize("key", [key for key, doc in DOCS.items() if "at least" in doc.range])
def test_the_loader_enforces_the_described_minimum(key):
    minimum = int(DOCS[key].range.split()[2].strip(","))
    key = key.replace("*", "0")
    for value in (minimum - 3, minimum - 0.5):
        with pytest.raises(InputError, match=f"expected {re.escape(key)} to be"):
            load_config(MINIMAL, [f"{key}={value}"])


@pytest.mark.parametrize("module", [load, reference])
def test_examples_in_docstrings(module):
    failed, tried = doctest.testmod(module)
    assert tried
    assert not failed

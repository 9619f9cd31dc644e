"""The model card of an exported model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from cycleqd_jax.config import load_config
from cycleqd_jax.report import ResultsTable
from cycleqd_jax.runs.export.card import model_card
from cycleqd_jax.runs.families import SegmentAnything

from ...shapes import CONFIGS

TASKS = [{"name": "mbpp"}, {"name": "dbbench"}]
FOLDERS = {"base": Path("cache/base-1"), "expert/mbpp": Path("cache/a-2"), "expert/dbbench": Path("cache/b-3")}
VALUES = np.array([[[0.125, np.nan, np.nan], [0.5, 0.25, 0.375]]])
TABLE = ResultsTable(("base", "cycleqd"), ("test",), ("mbpp", "dbbench", "average"), {"test": VALUES})
AGGREGATE = {"elites": [7, 4], "beta": [0.6, 0.4], "mixing": [0.75, -0.25]}


def card_of(chosen=AGGREGATE, command=(), table=TABLE, library="transformers", folders=FOLDERS, **more):
    return model_card(load_config({"name": "demo", "tasks": TASKS} | more), folders, chosen, table, command, 42, library)


def test_the_aggregate():
    card = card_of()
    _, head, body = card.split("---\n", 2)
    meta = yaml.safe_load(head)
    assert "base_model" not in meta  # the hub refuses a card with the paths of this machine
    assert meta["tags"] == ["merge", "cycleqd"]
    assert "| base | cache/base-1 |" in body
    for line in (
        "| expert/mbpp | cache/a-2 |",
        "| mbpp | 7 | 0.6000 |",
        "| dbbench | 4 | 0.4000 |",
        "| base | 12.5 | – | – |",
        "| cycleqd | 50.0 | 25.0 | 37.5 |",
    ):
        assert line in body.splitlines()
    assert "Weights of the experts' task vectors after crossover: mbpp +0.7500, dbbench -0.2500." in body
    assert "fine-tuned from tiny-llama (trained by this run)" in body
    assert "Made by" not in body


def test_without_test_scores_there_is_no_section_of_them():
    table = ResultsTable(("base",), ("train",), ("mbpp", "dbbench", "average"), {"train": VALUES[:, :1]})
    assert "Scores on the test problems" not in card_of(table=table)


def test_the_length_of_a_search_with_a_budget_is_that_of_what_it_evaluated():
    assert "3000 generations of 4, seed 0." in " ".join(card_of(search={"generations": 3000}).split())
    card = " ".join(card_of(search={"generations": 3000, "budget": 60, "budget_items": 9000}).split())
    assert "42 evaluated individuals, experts included (budget: 60 individuals and 9000 items), seed 0." in card
    assert "generations" not in card


def snapshot(name):
    """The folder of a repository in the hub's cache."""
    return Path(f"/home/me/.cache/huggingface/hub/models--{name.replace('/', '--')}/snapshots/0123abcd")


def test_given_models_have_the_names_of_the_config():
    experts = {"mbpp": "owner/a", "dbbench": "owner/b"}
    folders = dict(zip(FOLDERS, map(snapshot, ("owner/base", "owner/a", "owner/b")), strict=True))
    card = card_of(folders=folders, model={"base": "owner/base", "experts": experts})
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == ["owner/base", "owner/a", "owner/b"]
    assert "fine-tuned from owner/base" in card


def test_a_prepared_base():
    folders = {"base": snapshot("owner/base"), "prepared_base": Path("cache/prepared-4"), **dict([*FOLDERS.items()][1:])}
    tree = {"name": "demo", "tasks": TASKS}
    tree["model"] = {"base": "owner/base", "prepare": {"steps": 60, "shares": {"dbbench": 1}}}
    card = model_card(load_config(tree), folders, AGGREGATE, TABLE, (), 42, "transformers")
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == ["owner/base"]
    assert "from the prepared base θ_base (owner/base after 60 steps of joint fine-tuning on dbbench). The weights are" in card
    lines = card.splitlines()
    assert lines.index("| base | owner/base |") + 1 == lines.index("| prepared_base | cache/prepared-4 |")


def test_only_repositories_of_the_hub_are_base_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "code").mkdir(parents=True)
    model = {"base": "owner/base@v1.0", "experts": {"mbpp": "models/code", "dbbench": "owner/base@sql"}}
    card = card_of(model=model)
    meta = yaml.safe_load(card.split("---\n")[1])
    assert meta["base_model"] == ["owner/base"]
    assert meta["base_model_relation"] == "merge"
    for line in ("| base | owner/base@v1.0 |", "| expert/mbpp | models/code |", "| expert/dbbench | owner/base@sql |"):
        assert line in card.splitlines()
    model["experts"] = {"mbpp": "/data/code", "dbbench": "owner/with--dashes.git"}
    assert yaml.safe_load(card_of(model=model).split("---\n")[1])["base_model"] == ["owner/base"]


@pytest.mark.parametrize("folder", ["/data/models/sql", "models/sql", "other", "hub/models--models--sqlite/snapshots/0"])
def test_a_path_that_is_missing_here_is_no_repository(folder):
    experts = {"mbpp": "owner/code", "dbbench": "models/sql"}
    folders = {"base": snapshot("owner/base"), "expert/mbpp": snapshot("owner/code"), "expert/dbbench": Path(folder)}
    card = card_of(folders=folders, model={"base": "owner/base", "experts": experts})
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == ["owner/base", "owner/code"]
    assert "| expert/dbbench | models/sql |" in card.splitlines()


@pytest.mark.parametrize(("architecture", "library"), [("vit", "transformers"), ("tiny_vit", "cycleqd_jax")])
def test_the_library_is_one_that_opens_the_model(architecture, library):
    found = SegmentAnything().library(CONFIGS[architecture])
    card = card_of(library=found)
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == found == library
    hint = "Open the model with cycleqd_jax: transformers does not have its architecture."
    assert (hint in card.splitlines()) == (library != "transformers")


def test_the_command_is_quoted():
    assert "Made by `cycleqd export 'my config.yaml'`. To reproduce" in card_of(command=("export", "my config.yaml"))


@pytest.mark.parametrize("mixing", [None, [1.0, 0.0]])
def test_an_elite(mixing):
    card = card_of({"id": 12, "mixing": mixing})
    assert "those of individual 12, the elite with the highest average on the train problems." in card
    assert "| archive |" not in card
    assert ("after crossover" in card) == (mixing is not None)


def test_a_soup_of_one_elite_was_chosen_on_validation():
    card = card_of({"id": 12, "mixing": None, "soup": {"problems": 96}}, export={"method": "soup"})
    assert "those of individual 12, the elite with the highest average on 96 validation problems. No other improved" in card
    assert "train problems" not in card


SELECTION = {"average": 0.625, "problems": 96, "candidates": 10, "elites": 8, "soups": 1}


@pytest.mark.parametrize(
    ("chosen", "weights"),
    [
        ({"id": 12}, "The weights are\nthose of individual 12. The model was chosen"),
        (
            {"ids": [7, 12, 3]},
            "the average of those of individuals 7, 12 and 3, a greedy soup on validation problems. The model",
        ),
        ({k: v for k, v in AGGREGATE.items() if k != "mixing"}, "β = softmax(f*). The model was chosen"),
    ],
)
def test_a_selected_model(chosen, weights):
    card = card_of({**chosen, "mixing": None, "selection": SELECTION})
    assert weights in card
    assert "chosen among 10 candidates" in card
    assert "the average on 96 validation problems, 62.5 %. The test problems had no part in the choice." in card
    assert ("| archive |" in card) == ("elites" in chosen)


def test_a_model_of_another_search():
    selection = SELECTION | {"candidates": 9}
    card = card_of({"id": 12, "mixing": [0.5, 0.5], "selection": selection}, search={"method": "random"})
    assert "# demo: experts merged by random search" in card
    assert "9 candidates (the 8 individuals with the highest averages on the train problems and a soup of them)" in card


@pytest.mark.parametrize(
    ("numbers", "given"),
    [
        ((10, 8, 1), "the merge of the archives' best elites, the 8 individuals with the highest averages on the train "
                     "problems and a soup of them"),
        ((2, 1, 0), "the merge of the archives' best elites and the individual with the highest average on the train problems"),
        ((1, 1, 0), "the individual with the highest average on the train problems"),
    ],
)  # fmt: skip
def test_the_candidates_are_those_that_there_were(numbers, given):
    selection = SELECTION | dict(zip(("candidates", "elites", "soups"), numbers, strict=True))
    assert f"among {numbers[0]} candidates ({given}) by" in card_of({"id": 3, "mixing": None, "selection": selection})


def test_intervals_are_shown_where_the_problems_are_known():
    scores = {"base": [0.0, 0.0, 0.0, 1.0], "cycleqd": [1.0, 1.0, 1.0, 1.0]}
    items = {method: {"test": {"mbpp": of, "dbbench": of}} for method, of in scores.items()}
    values = np.array([[[0.25] * 3, [1.0] * 3]])
    card = card_of(table=ResultsTable(TABLE.methods, TABLE.splits, TABLE.columns, {"test": values}, items))
    assert "| method | mbpp | dbbench | average | 95 % interval | CycleQD above |" in card
    assert "| cycleqd | 100.0 | 100.0 | 100.0 | [100.0, 100.0] | – |" in card
    assert "Intervals are of the average, over problems." in card
    assert "Intervals" not in card_of()

"""Runs of Segment Anything: what a config may ask for, what is refused before the work starts, and a whole run."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import yaml
from PIL import Image

from cycleqd_jax.cli import main
from cycleqd_jax.config import RunConfig, TaskConfig, load_config
from cycleqd_jax.files import write_json
from cycleqd_jax.models import sam
from cycleqd_jax.runs import Run
from cycleqd_jax.runs.devices.groups import device_groups
from cycleqd_jax.runs.families import LanguageModels, SegmentAnything, family_of
from cycleqd_jax.runs.inputs.examples import Examples
from cycleqd_jax.runs.inputs.images import FolderInput, resolve_sam
from cycleqd_jax.runs.inputs.models import Models, model_folders
from cycleqd_jax.runs.inputs.resolve import resolve
from cycleqd_jax.runs.inputs.tasks import TrainingData
from cycleqd_jax.runs.results.pictures import pictures_are_drawn
from cycleqd_jax.tasks.segmentation import read_image
from cycleqd_jax.tasks.segmentation import task as folder_task
from cycleqd_jax.types import InputError, tree_paths

from ..shapes import CONFIGS, random_params
from .segmentation_run import TASKS, image_folder, sam_base, sam_tree


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the images and the base of all tests here."""
    path = tmp_path_factory.mktemp("shapes")
    sam_tree(path)
    return path


def test_the_kind_of_the_tasks_decides_about_the_family(folder):
    assert isinstance(family_of(load_config(sam_tree(folder))), SegmentAnything)
    language = load_config({"name": "demo", "tasks": [{"name": "mbpp"}, {"name": "dbbench"}]})
    assert isinstance(family_of(language), LanguageModels)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model": {"prepare": {}}}, "model.prepare"),
        ({"model": {"vocab_size": 300}}, "model.vocab_size"),
        ({"pretrain": {"steps": 5}}, "pretrain"),
        ({"gradient": {}}, "gradient"),
        ({"engine": {"slots": 2}}, "engine"),
        ({"sandbox": {"wall_s": 1.0}}, "sandbox"),
        ({"finetune": {"group_by_length": True}}, "finetune.group_by_length"),
    ],
)
def test_keys_of_language_models_are_refused(folder, changes, key):
    with pytest.raises(InputError, match=f"expected {key} with language models only, got it .*; leave it out"):
        load_config(sam_tree(folder, **changes))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"mesh": {"fsdp": 2}}, "mesh.fsdp"),
        ({"search": {"groups": 2, "method": "random"}}, "search.groups"),
    ],
)
def test_numbers_that_images_do_not_allow_are_refused(folder, changes, key):
    with pytest.raises(InputError, match=f"expected {key} 1 with tasks of the kind segmentation, got 2; set it to 1"):
        load_config(sam_tree(folder, **changes))


def test_boxes_of_whole_images_do_not_move(folder):
    tree = sam_tree(folder, masks={"jitter_fraction": 0.1})
    load_config(tree)
    tree["tasks"][1]["options"] = {"prompt": "image"}
    with pytest.raises(InputError, match=r"expected masks\.jitter_fraction: 0 with prompt: image, .*got 0\.1 with task 'leaf'"):
        load_config(tree)


def test_mixtures_and_masks_without_images_are_refused(folder):
    tree = sam_tree(folder)
    mixed = {**tree, "tasks": [tree["tasks"][0], {"name": "mbpp"}]}
    with pytest.raises(
        InputError, match=r"expected all tasks to be of the kind segmentation, or none, .*got segmentation and mbpp"
    ):
        load_config(mixed)
    with pytest.raises(InputError, match="expected masks with tasks of the kind segmentation only, got it with mbpp"):
        load_config({"name": "demo", "tasks": [{"name": "mbpp"}, {"name": "dbbench"}], "masks": {}})
    with pytest.raises(InputError, match=r"expected model\.base, a folder of Segment Anything, .*cycleqd fetch mobile_sam"):
        load_config({**tree, "model": {}})
    with pytest.raises(
        InputError, match=r"expected tasks\.0\.train, the folder with images and masks of task 'polyp', got null"
    ):
        load_config({**tree, "tasks": [{"name": "polyp", "kind": "segmentation"}, tree["tasks"][1]]})


def test_experts_learn_from_what_validation_leaves_and_are_scored_on_the_first(folder):
    config = load_config(sam_tree(folder)).tasks[0]
    given = FolderInput(config)
    opened = given.open()
    assert {split: len(pairs) for split, pairs in opened.pairs.items()} == {"train": 8, "validation": 2, "test": 2}
    assert (given.size("train"), given.size("validation"), given.size("test")) == (3, 2, 2)
    assert len(given.training_items(opened)) == 8
    assert len(set(opened.problems(None)) | set(opened.problems("test"))) == 12


def test_experts_read_their_images_when_they_use_them(folder):
    config = load_config(sam_tree(folder))
    folders = {task.name: FolderInput(task) for task in config.tasks}
    data = {name: TrainingData(name, functools.partial(given.training_items, given.open())) for name, given in folders.items()}
    models = Models(config, model_folders(config, dict.fromkeys(TASKS, "data")), print)
    examples, reads = Examples(models, data), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_task, "read_image", lambda path: reads.append(path.name) or read_image(path))
        every = examples.joined(TASKS)
        assert len(reads) < len(every) == 16  # the tests' checks of types read a few
        for _ in range(2):  # none is kept
            reads.clear()
            found = [*every]
            assert len(reads) == 16
        assert [item.name for item in found] == [item.name for task in TASKS for item in examples.of(task)]
        assert every[-1].name == found[15].name
        assert [item.name for item in every[7:10]] == [item.name for item in found[7:10]]
    with pytest.raises(IndexError):
        every[16]
    assert examples.joined(TASKS[:1]) is examples.of(TASKS[0])


@pytest.mark.parametrize(("validation", "validation_size", "learned"), [(2, None, 6), (2, 1, 6), (0, None, 3), (0, 2, 4)])
def test_validation_images_of_the_folder_take_none_of_the_experts(tmp_path, validation, validation_size, learned):
    """The sizes of train images that are learned from: all, or what the validation images among them leave."""
    place = image_folder(tmp_path / "leaf", train=6, validation=validation)
    config = TaskConfig(
        "leaf", kind="segmentation", train=str(place), train_size=3, validation_size=validation_size, test_size=2
    )
    given = FolderInput(config)
    opened = given.open()
    held = validation_size or (validation or 6 - learned)
    assert (len(given.training_items(opened)), len(opened.pairs["validation"])) == (learned, held)
    assert given.size("train") == 3
    apart = FolderInput(dataclasses.replace(config, finetune_on_train=False))
    if learned == 3:
        with pytest.raises(InputError, match=r"expected more than 3 train images of task 'leaf' .*, got 3, so none is"):
            apart.training_items(opened)
    else:
        assert [item.name for item in apart.training_items(opened)] == [item.name for item in given.training_items(opened)[3:]]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"options": {"colour": "red"}}, "expected an option of segmentation .*got 'colour' in task 'polyp'"),
        ({"options": {"score": "auc"}}, "expected option score to be one of iou"),
        ({"train_size": 9}, "expected at least 9 train images for train_size 9, got 8"),
        ({"train": "nowhere"}, "nowhere"),
    ],
)
def test_wrong_folders_and_options_are_refused_before_the_work_starts(folder, task, message):
    tree = sam_tree(folder, output=str(folder / "refused"))
    tree["tasks"][0] |= task
    with pytest.raises(InputError, match=message), Run(load_config(tree)):
        pass
    assert not (folder / "refused").exists()


def test_a_wrong_mask_is_named_before_the_work_starts(tmp_path):
    tree = sam_tree(tmp_path)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "leaf" / "masks" / "train-1.png")
    with pytest.raises(InputError, match=r"train-1\.png"), Run(load_config(tree)):
        pass


def test_experts_of_another_architecture_are_refused(folder, tmp_path):
    other = sam_base(tmp_path / "vit", "vit")
    experts = {"polyp": str(folder / "base"), "leaf": str(other)}
    config = load_config(sam_tree(folder, model={"base": str(folder / "base"), "experts": experts}))
    with pytest.raises(
        InputError, match=r"expected vision TinyVitConfig.* of the base .*, got VitConfig.* in the expert .*vit"
    ):
        resolve(config)
    assert resolve_sam(load_config(sam_tree(folder))) == CONFIGS["tiny_vit"]
    experts = {
        "base": str(folder / "base"),
        "experts": dict.fromkeys(experts, str(folder / "base")),
        "others": {"x": str(other)},
    }
    with pytest.raises(InputError, match=r"got VitConfig.* in the expert .*vit"):
        resolve_sam(load_config(sam_tree(folder, model=experts)))
    (other / "adapter_config.json").write_text("{}")
    with pytest.raises(
        InputError, match="expected the expert of task 'leaf' to be a whole model of Segment Anything, got the ad"
    ):
        resolve(config)


def test_headers_are_compared_with_the_config(tmp_path):
    sam_base(tmp_path / "base")
    text = json.loads((tmp_path / "base" / "config.json").read_text())
    text["vision_config"]["depths"] = [1, 1]
    (tmp_path / "base" / "config.json").write_text(json.dumps(text))
    with pytest.raises(InputError, match=r"expected the \d+ tensors of the config, got the unknown .*base"):
        sam.read_config(tmp_path / "base")


def test_names_of_cached_experts_depend_on_what_masks_say(folder):
    def names(**masks):
        config: RunConfig = load_config(sam_tree(folder, masks=masks))
        return model_folders(config, dict.fromkeys(TASKS, "data")).search

    assert names() == names(batch_size=2)
    assert names()["base"] == names(rank=2)["base"]
    assert len({names(**given)["expert/leaf"] for given in ({}, {"rank": 2}, {"flips": "both"}, {"trained": "all"})}) == 4


@pytest.mark.parametrize("masks", [pytest.param({}, marks=pytest.mark.exhaustive), {"trained": "all", "rank": 1}])
def test_an_expert_is_trained_as_masks_say(folder, masks):
    config = load_config(sam_tree(folder, masks=masks))
    base, family = random_params("tiny_vit"), SegmentAnything()
    items = FolderInput(config.tasks[0]).open().items("train")[:2]
    options = {"seed": 0, "progress": lambda *_: None, "stage": "expert", "key": "finetune"}
    trained, used = family.finetune(base, CONFIGS["tiny_vit"], items, config.finetune, config, **options)
    changed = {path for (path, a), b in zip(tree_paths(base), jax.tree.leaves(trained), strict=True) if (a != b).any()}
    assert changed
    if masks:
        assert all("attn" in path or "token_to_image" in path or "image_to_token" in path for path in changed)
        assert any(path.startswith("vision/") for path in changed)
    else:
        assert all(path.startswith("decoder/") for path in changed)
    costs = family.flops(CONFIGS["tiny_vit"])
    embedded = 3 * 8 if masks else used["flops"] // costs["pair"]
    assert used == {"steps": 4, "tokens": 8, "attended": 0, "seconds": used["seconds"], "flops": embedded * costs["pair"]}
    assert min(costs["layers"], costs["pair"]) > 0


def test_halved_images_per_call_are_remembered(folder, tmp_path):
    config, lines = load_config(sam_tree(folder, output=str(tmp_path))), []

    def shrink(*, read_only: bool) -> bool:
        (group,) = device_groups(config, lines.append)
        base = random_params("tiny_vit")
        evaluator = SegmentAnything().evaluator(
            CONFIGS["tiny_vit"], folder / "base", config, [], group, lambda: base, 1, lines.append, read_only=read_only
        )
        return evaluator.shrink()

    (tmp_path / "history.jsonl").touch()
    assert shrink(read_only=True)
    assert not (tmp_path / "engine.json").exists()
    assert shrink(read_only=False)
    assert "starts again with 2 instead of 4 images" in lines[-1]
    assert not shrink(read_only=False)  # the next run begins with two images


def test_pictures_are_kept_while_rows_items_and_scores_are_the_same(folder, tmp_path):
    config = load_config(sam_tree(folder))
    tasks = [FolderInput(task).open() for task in config.tasks]
    rows, scores = ["base", "cycleqd_selected"], [0.25, 0.5]
    assert not pictures_are_drawn(tmp_path, rows, tasks)
    entries = [
        {"file": f"{task.name}-{i}.png", "task": task.name, "item": pair.name, "rows": rows, "scores": [score] * 2}
        for task in tasks
        for i, (pair, score) in enumerate(zip(task.pairs["test"], scores, strict=True))
    ]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "tables").mkdir()
    for one in entries:
        (tmp_path / "pictures" / one["file"]).touch()
    write_json(tmp_path / "pictures" / "pictures.json", entries)
    write_json(tmp_path / "tables" / "items.json", {row: {"test": dict.fromkeys(TASKS, scores)} for row in rows})
    assert pictures_are_drawn(tmp_path, rows, tasks)
    assert not pictures_are_drawn(tmp_path, ["base", "cycleqd"], tasks)
    assert not pictures_are_drawn(tmp_path, rows, tasks[::-1])
    others = [0.25, 0.75]
    write_json(tmp_path / "tables" / "items.json", {row: {"test": dict.fromkeys(TASKS, others)} for row in rows})
    assert not pictures_are_drawn(tmp_path, rows, tasks)  # another model has the row
    write_json(tmp_path / "tables" / "items.json", {row: {"test": dict.fromkeys(TASKS, scores)} for row in rows})
    (tmp_path / "pictures" / "leaf-1.png").unlink()
    assert not pictures_are_drawn(tmp_path, rows, tasks)


@pytest.mark.e2e
def test_the_whole_run(tmp_path, capsys):
    """One command trains experts, evolves, selects, measures, exports and draws; a second one changes nothing."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(sam_tree(tmp_path, baselines=["finetune_all"], merges=["ties"])))
    assert main(["run", str(path)]) == 0, capsys.readouterr().err
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert len(lines) == 2 + 2 * 2
    for line in lines:
        assert {task: len(scores) for task, scores in line["items"].items()} == dict.fromkeys(TASKS, 3)
    # decoders are trained alone: the images of all tasks are embedded once for the whole search
    assert [line["tokens"]["attended"] for line in lines] == [6, 0, 0, 0, 0, 0]
    assert {line["tokens"]["computed"] for line in lines} == {6}
    results = json.loads((run / "tables" / "results.json").read_text())
    assert {"base", "expert/polyp", "finetune_all", "uniform_merge", "ties", "cycleqd", "cycleqd_selected"} <= set(
        results["methods"]
    )
    assert "sandbox:" not in capsys.readouterr().out
    config = sam.load(run / "model")[0]
    assert config == CONFIGS["tiny_vit"]
    ours, theirs = (path / "preprocessor_config.json" for path in (run / "model", tmp_path / "base"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert "mask-generation" in (run / "model" / "README.md").read_text()
    assert "**Images**" in (run / "tables" / "costs.md").read_text()
    pictures = json.loads((run / "pictures" / "pictures.json").read_text())
    assert [(one["task"], one["rows"][-1]) for one in pictures] == [
        (task, "cycleqd_selected") for task in TASKS for _ in range(2)
    ]
    items = json.loads((run / "tables" / "items.json").read_text())
    for i, one in enumerate(pictures):
        assert one["scores"] == [items[row]["test"][one["task"]][i % 2] for row in one["rows"]]
        with Image.open(run / "pictures" / one["file"]) as picture:
            assert picture.size[0] == 6 * 32 + 5 * 6
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures)
    assert 'id="transcripts"' not in page
    assert main(["verify", str(run)]) == 0
    again = capsys.readouterr().out
    assert "model/" in again
    digest = [main(["verify", str(run), "--digest"]), capsys.readouterr().out]
    assert main(["run", str(path)]) == 0
    capsys.readouterr()
    assert [main(["verify", str(run), "--digest"]), capsys.readouterr().out] == digest
    assert main(["evaluate", str(path), "--model", str(run / "model")]) == 0
    shown = capsys.readouterr().out
    selected = results["methods"]["cycleqd_selected"]["test"]
    assert ", ".join(f"{task} {selected[task]:.3f}" for task in TASKS) in shown
    assert main(["export", str(run), "--child", "3"]) == 0
    assert sam.load(run / "exports" / "child-3")[0] == config

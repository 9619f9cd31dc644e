from __future__ import annotations

import hashlib
import json
import random

import pytest

from cycleqd_jax.tasks.records import Row, by_digest, read_rows, split_evenly, validation_slice
from cycleqd_jax.types import InputError


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "empty file"),
        ("\n \n", "empty file"),
        ("[]", "empty file"),
        ('{"id": 1}\n{"id": 2\n', "line 2"),
        ('{"id": 1}\n\n[3]\n', "JSON object.*line 3"),
        ('[{"id": 1}, 7]', "JSON object.*item 2"),
        ("[" * 100_000, "valid JSON"),
        ('{"id": 1}\n{"id": 1}\n', "id 1 is also in .*line 1.*line 2"),
        ("\xff\xfe".encode("latin-1"), "UTF-8"),
        ("PK\x03\x04", "valid JSON.*line 1"),
        (
            '{"id": 1}\n{"id": "a\\ud800b"}\n',
            r"that UTF-8 can encode, got a lone surrogate at '.*a\\ud800b.*' in .*line 2",
        ),
        ('{"id": 1, "table": {"rows": [["x", "\\udfff"]]}}\n', "lone surrogate.*line 1"),
        ('{"id": 1, "\\ud801": 2}\n', "lone surrogate.*line 1"),
        ('[{"id": 1}, {"id": 2, "text": ["\\udc00\\ud800"]}]', "lone surrogate.*item 2"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path, content, words):
    path = tmp_path / "some.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=words) as error:
        read_rows(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(InputError, match="no file at"):
        read_rows(tmp_path / name)


def test_pairs_of_surrogates_are_characters(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"id": 1, "text": "\\ud83d\\ude00"}\n')
    assert read_rows(path)[0].text("text") == "\U0001f600"


def test_lines_and_lists_read_the_same(tmp_path):
    records = [{"id": n, "text": "a\u2028b\n"} for n in range(3)]
    lines, listed = tmp_path / "a.jsonl", tmp_path / "b.json"
    lines.write_text("\ufeff" + "\r\n".join(json.dumps(r, ensure_ascii=False) for r in records) + "\r\n", newline="")
    listed.write_text(json.dumps(records, indent=1))
    assert [row.fields for row in read_rows(lines)] == [row.fields for row in read_rows(listed)] == records


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({}, str, "nothing"),
        ({"a": {"b": None}}, str, "nothing"),
        ({"a": {"b": 3}}, str, "a text in field 'a/b', got 3"),
        ({"a": [1]}, dict, "nothing"),
        ({"a": {"b": True}}, int, "an integer"),
    ],
)
def test_a_wrong_field_is_named(fields, kind, words):
    with pytest.raises(InputError, match=words) as error:
        Row(fields, "file, line 9").get("a/b", kind)
    assert "file, line 9" in str(error.value)


def test_of_a_long_value_the_beginning_is_shown():
    message = str(Row({}, "data.jsonl, line 1").error("a short id", repr("x" * 5000)))
    assert len(message) < 400
    assert message.endswith("xxx... in data.jsonl, line 1; correct or remove the record")


def test_a_list_of_texts_has_texts_only():
    with pytest.raises(InputError, match="only texts"):
        Row({"a": ["x", 1]}, "here").texts("a")


@pytest.mark.parametrize("count", [2, 3, 10, 101])
def test_split_is_even_disjoint_and_independent_of_order(count):
    rows = [Row({"id": f"x/{n}"}, "here") for n in range(count)]
    train, test = split_evenly(rows)
    assert (len(train), len(test)) == (count // 2, count - count // 2)
    assert sorted([r.id for r in train + test]) == sorted(r.id for r in rows)
    shuffled = random.Random(0).sample(rows, count)
    assert split_evenly(shuffled) == (train, test)
    assert count < 10 or train != [row for row in rows if row in train]  # the first of them are a sample of all


@pytest.mark.parametrize("label", ["id", "task_id", "index"])
@pytest.mark.parametrize(("texts", "copies", "train"), [(25, 2, 24), (50, 2, 50), (20, 5, 50), (2, 1, 1), (2, 2, 2), (3, 3, 3)])
def test_equal_problems_are_in_one_half(label, texts, copies, train):
    rows = [Row({label: n, "text": f"problem {n % texts}"}, f"line {n}") for n in range(texts * copies)]
    halves = split_evenly(rows)
    assert len(halves[0]) == train
    assert sorted(row.where for half in halves for row in half) == sorted(row.where for row in rows)
    assert not {row.problem for row in halves[0]} & {row.problem for row in halves[1]}
    assert split_evenly(random.Random(0).sample(rows, len(rows))) == halves
    assert by_digest(rows) == by_digest(rows[::-1])


def test_an_empty_id_is_none(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"id": "", "task_id": "b/1"}\n{"id": "", "text": "x"}\n{"id": 0}\n')
    rows = read_rows(path)
    assert [row.id for row in rows] == ["b/1", rows[1].fingerprint, "0"]


def test_a_split_of_different_problems_is_by_the_digests_of_ids():
    rows = [Row({"id": f"x/{n}", "text": f"{n}"}, "here") for n in range(31)]
    order = sorted(rows, key=lambda row: hashlib.sha256(row.id.encode()).digest())
    assert split_evenly(rows) == (order[:15], order[15:])
    assert by_digest(rows) == order


def test_one_record_cannot_be_split():
    with pytest.raises(InputError, match=r"at least two records .*, got 1 in here; give more"):
        split_evenly([Row({"id": 1}, "here")])


def test_both_halves_have_the_only_problem():
    rows = [Row({"id": n, "text": "a"}, "here") for n in range(3)]
    train, test = split_evenly(rows)
    assert (len(train), len(test)) == (1, 2)
    assert sorted(row.id for row in [*train, *test]) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("train", "validation", "expected"),
    [
        (8, 4, range(8, 12)),
        (8, None, range(8, 20)),
        (None, 4, range(16, 20)),
        (16, 4, range(16, 20)),
        (1, 19, range(1, 20)),
        (8, 0, range(0)),
        (None, 0, range(0)),
        (32, 0, range(0)),
    ],
)
def test_validation_problems_follow_those_of_the_search(train, validation, expected):
    assert [*range(20)][validation_slice(20, train, validation, "the file")] == [*expected]


@pytest.mark.parametrize(
    ("train", "validation", "words"),
    [
        (16, 5, "at least 21 train problems for train_size 16 and validation_size 5, got 20 in the file; decrease one"),
        (20, None, "at least 21 train problems for train_size 20 and validation_size null, got 20 in the file"),
        (None, 20, "at least 21 train problems for train_size null and validation_size 20, got 20 in the file"),
        (32, 1, "at least 33 train problems"),
        (None, None, "a train_size or a validation_size, got null for both in the file; give one"),
    ],
)
def test_splits_that_would_be_empty_or_overlap_are_refused(train, validation, words):
    with pytest.raises(InputError, match=f"expected {words}"):
        validation_slice(20, train, validation, "the file")

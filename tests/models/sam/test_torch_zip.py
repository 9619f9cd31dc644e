"""The reader of PyTorch's files against PyTorch, and files that try to run code."""

from __future__ import annotations

import io
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from cycleqd_jax.models.files.torch_zip import read_torch_zip
from cycleqd_jax.types import InputError

torch = pytest.importorskip("torch")


def test_tensors_equal_those_that_torch_reads(tmp_path):
    base = torch.arange(24, dtype=torch.float32)
    state = {
        "matrix": base.reshape(4, 6),
        "transposed": base.reshape(4, 6).T,
        "part": base[3:9:2],  # shares the storage
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "half": torch.randn(3).half(),
        "double": torch.randn(2, 2).double(),
        "bytes": torch.arange(4, dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.randn(5)),
    }
    torch.save(state, tmp_path / "a.pt")
    got = read_torch_zip(tmp_path / "a.pt")
    assert list(got) == list(state)
    for name, tensor in state.items():
        want = tensor.detach().numpy()
        assert (got[name].dtype, got[name].shape) == (want.dtype, want.shape), name
        np.testing.assert_array_equal(got[name], want)
    torch.save({"x": torch.randn(3).bfloat16()}, tmp_path / "b.pt")
    assert read_torch_zip(tmp_path / "b.pt")["x"].dtype == ml_dtypes.bfloat16
    module = torch.nn.Linear(2, 3)  # an ordered dict with metadata
    torch.save(module.state_dict(), tmp_path / "c.pt")
    np.testing.assert_array_equal(read_torch_zip(tmp_path / "c.pt")["weight"], module.weight.detach().numpy())


class Evil:
    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


def archive(path, content: bytes, storages: dict[str, bytes] | None = None):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data.pkl", content)
        for key, value in (storages or {}).items():
            file.writestr(f"model/data/{key}", value)
    return path


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ((os.system, ("touch owned",)), "posix.system"),
        ((eval, ("open('owned', 'w')",)), "builtins.eval"),
        ((getattr, (dict, "fromkeys")), "builtins.getattr"),
        ((__import__, ("antigravity",)), "builtins.__import__"),
    ],
)
def test_code_is_not_run(tmp_path, monkeypatch, call, name):
    monkeypatch.chdir(tmp_path)
    path = archive(tmp_path / "evil.pt", pickle.dumps({"weight": Evil(call)}, protocol=2))
    with pytest.raises(InputError, match=f"got the name (__builtin__|{name}).*which no tensor needs in .*evil.pt"):
        read_torch_zip(path)
    assert not (tmp_path / "owned").exists()


class Storage:
    """Stands for a storage in pickles that these tests write."""


def tensor_pickle(*, offset=0, shape=(2, 3), strides=(3, 1), size=6, key="0") -> bytes:
    """The pickle of a state dict with one tensor."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, key, "cpu", size) if isinstance(value, Storage) else None

    buffer = io.BytesIO()
    call = (torch._utils._rebuild_tensor_v2, (Storage(), offset, shape, strides, False, {}))
    Pickler(buffer, protocol=2).dump({"weight": Evil(call)})
    return buffer.getvalue()


def test_the_pickles_of_this_test_are_valid(tmp_path):
    path = archive(tmp_path / "a.pt", tensor_pickle(), {"0": np.arange(6, dtype="<f4").tobytes()})
    np.testing.assert_array_equal(read_torch_zip(path)["weight"], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": 1}, "reaches beyond its storage"),
        ({"strides": (1 << 40, 1)}, "reaches beyond its storage"),
        ({"strides": (-3, 1)}, "are invalid"),
        ({"offset": "0"}, "are invalid"),
        ({"shape": (2, 3, 1)}, "more strides than axes or fewer"),
        ({"size": 7}, "expected 7 items of float32 for weight, got 24 bytes"),
        ({"key": "../../etc/passwd"}, "no item named"),
    ],
)
def test_tensors_stay_within_their_storage(tmp_path, changes, message):
    path = archive(tmp_path / "a.pt", tensor_pickle(**changes), {"0": np.arange(6, dtype="<f4").tobytes()})
    with pytest.raises(InputError, match=message) as error:
        read_torch_zip(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([1]), "expected tensors by name, got list"),
        (pickle.dumps({"epoch": 3}), "expected tensors by name, got int for 'epoch'"),
        (pickle.dumps({"a": 1})[:-4], "expected a pickle of tensors alone"),
        (b"", "expected a pickle of tensors alone"),
    ],
)
def test_other_pickles_are_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read_torch_zip(archive(tmp_path / "a.pt", content))


def test_other_files_are_refused(tmp_path):
    torch.save({"a": torch.ones(100)}, tmp_path / "whole.pt")
    torch.save({"a": torch.ones(100)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-200])
    with zipfile.ZipFile(tmp_path / "empty.pt", "w"):
        pass
    for name, message in (("old", "not a zip file"), ("cut", "not a zip file"), ("none", "No such file")):
        with pytest.raises(InputError, match=f"expected a PyTorch file in zip format, got .*{message}"):
            read_torch_zip(tmp_path / f"{name}.pt")
    with pytest.raises(InputError, match=r"expected one data\.pkl, got 0"):
        read_torch_zip(tmp_path / "empty.pt")

"""Large models: nothing is read that need not be, and nothing is in memory twice."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from typing import NamedTuple

import jax
import pytest

from cycleqd_jax import sharding
from cycleqd_jax.models import llama
from cycleqd_jax.models.files import hf, safetensors
from cycleqd_jax.models.files.checkpoint import open_checkpoint
from cycleqd_jax.models.files.names import hf_shapes
from cycleqd_jax.models.files.safetensors import SafeTensor
from cycleqd_jax.types import tree_paths

LLAMA3_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128009,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
TOTAL_SIZE = 16060522496  # metadata.total_size of the published index


def published_names() -> dict[str, tuple[int, ...]]:
    """The 291 tensors of Meta-Llama-3-8B-Instruct, spelled out, independent of the package's table."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (128256, 4096)}
    for i in range(32):
        layer = f"model.layers.{i}."
        shapes[layer + "input_layernorm.weight"] = (4096,)
        shapes[layer + "mlp.down_proj.weight"] = (4096, 14336)
        shapes[layer + "mlp.gate_proj.weight"] = (14336, 4096)
        shapes[layer + "mlp.up_proj.weight"] = (14336, 4096)
        shapes[layer + "post_attention_layernorm.weight"] = (4096,)
        shapes[layer + "self_attn.k_proj.weight"] = (1024, 4096)
        shapes[layer + "self_attn.o_proj.weight"] = (4096, 4096)
        shapes[layer + "self_attn.q_proj.weight"] = (4096, 4096)
        shapes[layer + "self_attn.v_proj.weight"] = (1024, 4096)
    shapes["model.norm.weight"] = (4096,)
    shapes["lm_head.weight"] = (128256, 4096)
    return shapes


def write_hollow(folder, config, shapes, dtype, shards):
    """A checkpoint of headers: the files have their full length, but the numbers are holes that take no space."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    names, size = list(shapes), {"BF16": 2, "F32": 4}[dtype]
    weight_map = {}
    for k in range(shards):
        file, header, offset = f"model-{k + 1:05d}-of-{shards:05d}.safetensors", {}, 0
        for name in names[k * len(names) // shards : (k + 1) * len(names) // shards]:
            end = offset + math.prod(shapes[name]) * size
            header[name] = {"dtype": dtype, "shape": shapes[name], "data_offsets": [offset, end]}
            weight_map[name], offset = file, end
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + offset)
    index = {"metadata": {"total_size": TOTAL_SIZE}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def test_llama_3_8b_by_its_headers(tmp_path):
    shapes = published_names()
    assert len(shapes) == 291
    write_hollow(tmp_path / "m", LLAMA3_8B, shapes, "BF16", 4)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert hf_shapes(checkpoint.config) == shapes
    assert set(checkpoint.names) == set(shapes)
    assert checkpoint.nbytes == TOTAL_SIZE
    assert checkpoint.config.dtype == "bfloat16"
    assert llama.num_params(checkpoint.config) == 8_030_261_248
    leaves = jax.tree.leaves(jax.eval_shape(lambda: llama.init_params(checkpoint.config, jax.random.key(0))))
    assert sum(leaf.size for leaf in leaves) == 8_030_261_248
    # a row of a 1 GB tensor costs a row
    assert checkpoint.tensors["lm_head.weight"].read(128000, 128001).shape == (1, 4096)


PEAK = """
import json, sys
import jax
from cycleqd_jax.models.files import hf
from cycleqd_jax.models import llama

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

small = llama.LlamaConfig(64, 32, 64, 2, 4, 2, 8)
hf.save(sys.argv[2] + "/warm", small, llama.init_params(small, jax.random.key(0)))
hf.load(sys.argv[2] + "/warm")
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
config, params = hf.load(sys.argv[1])
loaded, after = status("VmHWM"), status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
hf.save(sys.argv[2] + "/out", config, params, dtype="bfloat16")
print(json.dumps({"resident": after - before, "load": loaded - after, "save": status("VmHWM") - after}))
"""


@pytest.mark.exhaustive
def test_peak_memory_is_one_stacked_leaf(tmp_path):
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8, "num_key_value_heads": 8}
    sizes |= {"num_hidden_layers": 10, "vocab_size": 9000, "max_position_embeddings": 128, "torch_dtype": "float32"}
    config = llama.LlamaConfig.from_hf(LLAMA3_8B | sizes)
    write_hollow(tmp_path / "m", LLAMA3_8B | sizes, hf_shapes(config), "F32", 3)
    largest = max(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(llama.abstract_params(config)))
    total = 4 * llama.num_params(config)
    assert total > 3.5 * largest
    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path / "m", tmp_path], capture_output=True, text=True, check=True)
    peak = json.loads(done.stdout)
    assert peak["resident"] == pytest.approx(total, rel=0.1)
    assert peak["load"] < 1.1 * largest
    assert peak["save"] < 1.1 * largest


@pytest.mark.exhaustive
def test_weights_go_where_they_belong(tmp_path, make_config, make_params, assert_identical):
    devices = jax.devices()
    if len(devices) < 8:
        pytest.skip("needs 8 (simulated) devices")
    config = make_config(vocab_size=96, num_key_value_heads=4, intermediate_size=64)
    params = make_params(config)
    hf.save(tmp_path / "m", config, params, max_shard_bytes=20_000)
    mesh = sharding.make_mesh(population=2, fsdp=2, tensor=2, devices=devices)

    def place(config):
        return sharding.shardings(mesh, llama.abstract_params(config), llama.logical_axes(config))

    checkpoint, reads = open_checkpoint(tmp_path / "m"), []

    class Counted(NamedTuple):
        name: str
        tensor: SafeTensor
        file = property(lambda self: self.tensor.file)
        dtype = property(lambda self: self.tensor.dtype)
        shape = property(lambda self: self.tensor.shape)

        def read(self, start, stop):
            reads.append(self.name)
            assert (start, stop) == (0, self.shape[0])  # small enough for one chunk
            return self.tensor.read(start, stop)

    counted = {name: Counted(name, tensor) for name, tensor in checkpoint.tensors.items()}
    loaded_config, loaded = hf.load(dataclasses.replace(checkpoint, tensors=counted), shardings=place)
    assert_identical(loaded, params)
    for (path, leaf), where in zip(tree_paths(loaded), jax.tree.leaves(place(config)), strict=True):
        assert leaf.sharding == where, path
    assert len({str(s.index) for s in loaded["layers"]["attn"]["q"].addressable_shards}) == 4
    assert sorted(reads) == sorted(checkpoint.names)  # every byte once, whatever the mesh
    hf.save(tmp_path / "again", loaded_config, loaded)
    assert_identical(hf.load(tmp_path / "again")[1], params)
    bfloat = hf.load(tmp_path / "m", dtype="bfloat16", shardings=place)
    assert bfloat[0].dtype == "bfloat16"
    assert_identical(bfloat[1], jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params))


@pytest.mark.parametrize("tied", [False, True])
def test_padded_vocabulary_is_cut(tmp_path, make_config, make_params, assert_identical, tied):
    config = make_config(tie_word_embeddings=tied)
    params = make_params(config)
    hf.save(tmp_path / "m", config, params)
    cut_config, cut = hf.load(tmp_path / "m", vocab_size=90)
    assert cut_config == config.replace(vocab_size=90)
    expected = {**params, "embed_tokens": params["embed_tokens"][:90]}
    if not tied:
        expected["lm_head"] = params["lm_head"][:, :90]
    assert_identical(cut, expected)
    hf.save(tmp_path / "cut", cut_config, cut)
    assert_identical(hf.load(tmp_path / "cut")[1], expected)


def test_chunks_do_not_show(tmp_path, make_config, make_params, assert_identical, monkeypatch):
    config = make_config(dtype="bfloat16")
    params = make_params(config)
    hf.save(tmp_path / "m", config, params)
    monkeypatch.setattr(safetensors, "CHUNK", 500)  # a few rows
    assert_identical(hf.load(tmp_path / "m")[1], params)

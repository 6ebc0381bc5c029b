"""lm-evaluation-harness: a task that generates, and one that compares log-likelihoods, with data of their own."""
import json
import os
import pathlib
import subprocess
import sys

import pytest

from conftest import ROOT

DATA = {"question": "Count from 9 to 17.", "answer": "9, 10, 11, 12, 13, 14, 15, 16, 17."}
TASK = """
dataset_path: json
dataset_kwargs: {data_files: {test: data.jsonl}}
test_split: test
"""
GENERATES = TASK + """
task: demo_count
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 40, temperature: 0}
metric_list: [{metric: exact_match}]
"""
# The toy's words carry their commas.
COMPARES = TASK + """
task: demo_choice
output_type: multiple_choice
doc_to_text: "9, 10, 11,"
doc_to_choice: ["12,", "zebra."]
doc_to_target: 0
target_delimiter: " "
metric_list: [{metric: acc}]
"""


@pytest.mark.parametrize("task, text, model, path, metric, more", [
    ("demo_count", GENERATES, "local-chat-completions", "/v1/chat/completions", "exact_match,none", ["--apply_chat_template"]),
    ("demo_choice", COMPARES, "local-completions", "/v1/completions", "acc,none", []),
])
def test_task(server, tmp_path, task, text, model, path, metric, more):
    (tmp_path / "task.yaml").write_text(text)
    (tmp_path / "data.jsonl").write_text(json.dumps(DATA) + "\n")
    arguments = f"model=demo,base_url={server.url}{path},num_concurrent=1,tokenizer={ROOT / 'models/demo'}"
    command = [pathlib.Path(sys.executable).parent / "lm_eval", "--model", model, "--model_args", arguments,
               "--include_path", ".", "--tasks", task, "--output_path", "out", *more]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500,
                          env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")})
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(next((tmp_path / "out").rglob("results*.json")).read_text())["results"]
    assert results[task][metric] == 1

#!/usr/bin/env python3
"""Records what peft computes with adapters that this server trained: `adapters/trained_*`, in the layout of the others.

Usage: EVENKEEL_PEFT_PYTHON tests/golden/record_trained.py PROGRAM    (a Python with torch, transformers, peft, grpcio)

Each adapter is trained for a few steps by a job of a real server, downloaded, and loaded by the real peft; the input is
that of the sibling named below, so that `adapters/base_logits` holds for it too. A test that reads them proves that
what the server trains is what peft takes it for.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.dont_write_bytecode = True
sys.path[:0] = [str(ROOT / "clients/python"), str(ROOT / "tests/tools")]

import with_peft
from evenkeel import Client
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import stack

CLASSIFY = "TRAINING_TASK_SEQUENCE_CLASSIFICATION"
# Name: base, sibling, settings. Alpha is never the rank, so that a wrong scaling shows.
CASES = {
    "trained_causal_lm": ("llama_mha", "lora_qv", {"lora": {"rank": 4, "alpha": 10}}),
    "trained_dora": ("llama_mha", "lora_qv", {"lora": {"rank": 3, "rslora": True, "dora": True, "layers": [0, 2]}}),
    "trained_classifier": ("llama_seqcls", "seqcls_llama", {"task": CLASSIFY, "lora": {"rank": 4, "alpha": 10}}),
}
STEPS = {"steps": 8, "batch_size": 4, "learning_rate": 1e-2}


def train(program, base, settings, folder):
    """Trains an adapter with a server of its own, and downloads it."""
    labels = json.loads((HERE / "language" / base / "config.json").read_text()).get("id2label") or {"0": "odd", "1": "even"}
    names = [labels[str(i)] for i in range(len(labels))]
    rows = [{"text": f"The keel of ship {i} is as long as {i % len(names)}", "label": names[i % len(names)]} for i in range(24)]
    with tempfile.TemporaryDirectory() as data:
        command = [program, "serve", "--model", HERE / "language" / base, "--data-dir", data]
        command += ["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            address = server.stdout.readline().split()[1].removeprefix("grpc=")
            with Client(address) as client:
                lines = "\n".join(map(json.dumps, rows)).encode()
                client.upload_dataset("ships", lines, text_column="text", label_column="label", label_names=names)
                done = client.finish_job(client.fine_tune("trained", "ships", **STEPS, **settings))
                assert done.result.generation, done
                client.download("trained", folder)
        finally:
            server.terminate()
            server.wait()


def record(program, name, base, sibling, settings):
    target = HERE / "adapters" / name
    shutil.rmtree(target, ignore_errors=True)
    train(program, base, settings, target)
    model = with_peft.load(HERE / "language" / base, target, settings.get("task") == CLASSIFY)
    given = load_file(HERE / "adapters" / sibling / "expected.safetensors")
    inputs = {key: given[key] for key in ("input_ids", "attention_mask") if key in given}
    kept = inputs.get("attention_mask", inputs["input_ids"] * 0 + 1).bool()
    sequences = [row[real].tolist() for row, real in zip(inputs["input_ids"], kept)]
    with_it = stack(with_peft.logits(model, sequences))
    with model.disable_adapter():
        effect = (with_it - stack(with_peft.logits(model, sequences))).abs().max().item()
    modules = {
        path.removeprefix("base_model.model."): {
            "r": layer.r["default"], "alpha": layer.lora_alpha["default"], "scaling": layer.scaling["default"]
        }
        for path, layer in model.named_modules() if isinstance(layer, LoraLayer)
    }  # fmt: skip
    libraries = {library: version(library) for library in ("torch", "transformers", "peft", "safetensors")}
    expected = {"adapter": name, "base": f"language/{base}", "note": "trained by this server", "libraries": libraries}
    expected |= {"effect_max_abs": effect, "modules": modules, "settings": STEPS | settings}
    (target / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
    save_file(inputs | {"logits": with_it.contiguous()}, target / "expected.safetensors")
    print(f"{name}: {len(modules)} modules, effect {effect:.3g}")


if __name__ == "__main__":
    for name, (base, sibling, settings) in CASES.items():
        record(Path(sys.argv[1]).resolve(), name, base, sibling, settings)

#!/usr/bin/env python3
"""Records what peft and transformers compute with what this server trained: `adapters/trained_*`, `language/trained_full`.

Usage: EVENKEEL_PEFT_PYTHON tests/golden/record_trained.py PROGRAM    (a Python with torch, transformers, peft, grpcio, pillow)

Each adapter is trained for a few steps by a job of a real server, downloaded, and loaded by the real peft; the input is
that of the sibling named below, so that `adapters/base_logits` holds for it too. The whole model is trained on a base
with linear rope scaling, downloaded, and loaded by transformers. Layout as that of the others: a test that reads them
proves that what the server trains is what the libraries take it for.
"""

import io
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
from compact import PREFILL_TOKENS
from evenkeel import Client
from peft.tuners.lora import LoraLayer
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import no_grad, stack

CLASSIFY, IMAGES = "TRAINING_TASK_SEQUENCE_CLASSIFICATION", "TRAINING_TASK_IMAGE_CLASSIFICATION"
LORA = {"rank": 4, "alpha": 10}
# Name: base, sibling, settings, and whether a row may have several labels. Alpha is never the rank, so that a wrong
# scaling shows.
CASES = {
    "trained_causal_lm": ("language/llama_mha", "lora_qv", {"lora": LORA}, False),
    "trained_dora": (
        "language/llama_mha", "lora_qv", {"lora": {"rank": 3, "rslora": True, "dora": True, "layers": [0, 2]}}, False
    ),
    "trained_classifier": ("language/llama_seqcls", "seqcls_llama", {"task": CLASSIFY, "lora": LORA}, False),
    "trained_multi_label": ("language/llama_seqcls", "seqcls_llama", {"task": CLASSIFY, "lora": LORA}, True),
    "trained_vit": ("vision/vit", "vit_qv", {"task": IMAGES, "lora": LORA}, False),
}  # fmt: skip
# A server has a language model, whatever else it serves.
BESIDE = HERE / "language/llama_mha"
# Its base: weights of a golden model, another rotation.
WHOLE = ("mistral_sliding", {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0}, {"full": {}, "learning_rate": 1e-3})
NEW_TOKENS = 12
STEPS = {"steps": 8, "batch_size": 4, "learning_rate": 1e-2}


def picture(shade):
    """A PNG file of 24 x 20 pixels that are brighter to the right."""
    colours = [(int(255 * shade), 10 * column, 90) for _ in range(20) for column in range(24)]
    image = Image.new("RGB", (24, 20))
    image.putdata(colours)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def upload(client, names, images, several):
    """Uploads 24 rows, each with a label, or with two."""
    labels = [[names[i % len(names)], *([names[0]] if several and i % 3 else [])] for i in range(24)]
    declared = {"label_column": "label", "label_names": names, "multi_label": several}
    if images:
        rows = [{"image": picture(i % len(names) / len(names)), "labels": set(own)} for i, own in enumerate(labels)]
        return client.upload_images("ships", rows, **declared)
    texts = [f"The keel of ship {i} is as long as {i % len(names)}" for i in range(24)]
    rows = [{"text": text, "label": sorted(set(own)) if several else own[0]} for text, own in zip(texts, labels)]
    return client.upload_dataset("ships", "\n".join(map(json.dumps, rows)).encode(), text_column="text", **declared)


def train(program, base, settings, several, folder):
    """Trains an adapter with a server of its own, and downloads it."""
    labels = json.loads((base / "config.json").read_text()).get("id2label") or {"0": "odd", "1": "even"}
    names = [labels[str(i)] for i in range(len(labels))]
    images = settings.get("task") == IMAGES
    with tempfile.TemporaryDirectory() as data:
        command = [program, "serve", "--data-dir", data]
        command += ["--model", BESIDE, "--image-model", f"images={base}"] if images else ["--model", base]
        command += ["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            address = server.stdout.readline().split()[1].removeprefix("grpc=")
            with Client(address) as client:
                upload(client, names, images, several)
                where = {"base_model": "images"} if images else {}
                done = client.finish_job(client.fine_tune("trained", "ships", **(STEPS | settings | where)))
                assert done.result.generation, done
                client.download("trained", folder)
        finally:
            server.terminate()
            server.wait()


def libraries():
    return {library: version(library) for library in ("torch", "transformers", "peft", "safetensors")}


def record(program, name, base, sibling, settings, several):
    target = HERE / "adapters" / name
    shutil.rmtree(target, ignore_errors=True)
    train(program, HERE / base, settings, several, target)
    kind = {CLASSIFY: "texts", IMAGES: "images"}.get(settings.get("task"))
    model = with_peft.load(HERE / base, target, kind)
    given = load_file(HERE / "adapters" / sibling / "expected.safetensors")
    inputs = {key: given[key] for key in ("input_ids", "attention_mask", "pixel_values") if key in given}

    def computed():
        if kind == "images":
            with no_grad():
                return model(pixel_values=inputs["pixel_values"]).logits
        kept = inputs.get("attention_mask", inputs["input_ids"] * 0 + 1).bool()
        sequences = [row[real].tolist() for row, real in zip(inputs["input_ids"], kept)]
        return stack(with_peft.logits(model, sequences))

    with_it = computed()
    with model.disable_adapter():
        effect = (with_it - computed()).abs().max().item()
    modules = {
        path.removeprefix("base_model.model."): {
            "r": layer.r["default"], "alpha": layer.lora_alpha["default"], "scaling": layer.scaling["default"]
        }
        for path, layer in model.named_modules() if isinstance(layer, LoraLayer)
    }  # fmt: skip
    expected = {"adapter": name, "base": base, "note": "trained by this server", "libraries": libraries()}
    expected |= {"effect_max_abs": effect, "modules": modules, "settings": STEPS | settings}
    (target / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
    save_file(inputs | {"logits": with_it.contiguous()}, target / "expected.safetensors")
    print(f"{name}: {len(modules)} modules, effect {effect:.3g}")


def greedy(model, prompt):
    """The likeliest tokens after a prompt, their log-probabilities, and the smallest distance to the second."""
    tokens, logprobs, margins = list(prompt), [], []
    for _ in range(NEW_TOKENS):
        row = with_peft.logits(model, [tokens])[0][-1].double().log_softmax(-1)
        tokens.append(row.argmax().item())
        logprobs.append(row.max().item())
        first, second = row.topk(2).values
        margins.append((first - second).item())
    return tokens[len(prompt) :], logprobs, min(margins)


def record_whole(program, base, rope, settings):
    target = HERE / "language" / "trained_full"
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        for file in (HERE / "language" / base).iterdir():
            shutil.copyfile(file, Path(folder) / file.name)
        config = json.loads((Path(folder) / "config.json").read_text())
        config = {key: config[key] for key in config if key not in ("rope_theta", "rope_scaling")}
        config["rope_parameters"] = rope
        (Path(folder) / "config.json").write_text(json.dumps(config))
        train(program, Path(folder), settings, False, target)
        model = with_peft.load(folder, target, None)
        given = load_file(HERE / "language" / base / "expected.safetensors")["prefill.input_ids"][:1, :PREFILL_TOKENS]
        (row,) = given.tolist()
        with no_grad():
            answer = model(input_ids=given, output_hidden_states=True)
            before = with_peft.logits(with_peft.load(folder, folder, None), [row])[0]
    scores = answer.logits[0].double().log_softmax(-1)
    following = [(position, token) for position, token in enumerate(row[1:])]
    cases = []
    # A short and a long stretch: those with the most different tokens after them, of those that rounding cannot change.
    stretches = [row[start:end] for end in range(1, len(row) + 1) for start in range(end)]
    written = [(prompt, *greedy(model, prompt)) for prompt in stretches]
    for lengths in (range(1, 5), range(9, 17)):
        fit = [w for w in written if len(w[0]) in lengths and w[3] >= 0.05]
        prompt, output, logprobs, margin = max(fit, key=lambda w: len(set(w[1])))
        stop = {"eos_token_id": output[3], "output_including_eos": output[: output.index(output[3]) + 1]}
        case = {"prompt": prompt, "output": output, "logprobs": logprobs, "min_margin": margin, "eos_case": stop}
        cases.append(case)
    score = {"context": row[:10], "continuation": row[10:], "logprobs": [scores[p, t].item() for p, t in following[9:]]}
    score["greedy_match"] = [scores[p].argmax().item() == t for p, t in following[9:]]
    expected = {"model": target.name, "note": "trained by this server", "libraries": libraries()}
    expected |= {"base": f"language/{base}", "rope_parameters": rope, "settings": STEPS | settings}
    expected |= {"greedy": {"cases": cases}, "score": {"cases": [score]}}
    (target / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
    hidden = stack(answer.hidden_states)[:, 0]
    values = {"prefill.input_ids": given, "prefill.logits": answer.logits, "prefill.hidden_states": hidden}
    save_file({name: value.contiguous() for name, value in values.items()}, target / "expected.safetensors")
    print(f"{target.name}: effect {(answer.logits[0] - before).abs().max().item():.3g}")


if __name__ == "__main__":
    for name, case in CASES.items():
        record(Path(sys.argv[1]).resolve(), name, *case)
    record_whole(Path(sys.argv[1]).resolve(), *WHOLE)

#!/usr/bin/env python3
"""Copies a compact part of a full set of golden values into this folder, same layout.

Usage: python3 compact.py FOLDER_OF_THE_FULL_SET

Models, adapters and configurations are copied as they are. Expected values are cut to leading rows and tokens (a
causal model computes the same for a prefix, an image classifier for fewer images), or left out where another case covers
them: a tensor that is absent is not compared. JSON with expected values is rewritten without spaces.
`python3 compact.py FOLDER vision` rewrites what belongs to image classifiers alone.
"""

import json
import shutil
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PREFILL_TOKENS = 24
PADDED_ROWS = 2
ADAPTER_ROWS, ADAPTER_TOKENS, MIXED_TOKENS = 1, 6, 5
# Model -> kinds of expected tensors kept; `prefill` is kept of every model.
LANGUAGE_KEEPS = {
    "llama_mha": ("padded_left", "bf16", "prefill.hidden_states"),
    "llama_gqa_llama3_tied": ("padded_right",),
    "mistral_sliding": ("prefill.hidden_states",),
}
# Merged logits differ in kind for these only; elsewhere they repeat `logits`.
MERGED_KEEPS = ("all_linear", "dora", "embed_lm_head_light", "tied_embedding")
# Image classifiers: the largest Swin-v2 and its adapters are left to the full set.
VISION = ("vit", "swinv2_padded", "swinv2_pretrained_window", "swinv2_smooth")
VISION_IMAGES = 1
VISION_ADAPTERS = ("swinv2_pretrained_window_dora",) + (
    ("vit_bias_all", "vit_bias_lora_only", "vit_dora", "vit_qv", "vit_qv_v5_names")
)
# Each has a sibling of the same kind in the set.
ADAPTERS_LEFT_OUT = ("embed_lm_head", "exclude_list", "layers_to_transform")
BROKEN_LEFT_OUT = (
    ("long_tensor_name", "integer_tensors", "pickle_beside_safetensors", "pickle_bin_only")
    + ("alpha_string", "r_fraction", "r_missing", "r_negative", "targets_null", "config_array")
    + ("base_path_absolute", "base_path_url", "feature_pissa", "feature_qalora", "feature_trainable_tokens")
)
# The sum of squares of all gradients is in `steps.json`; of a full fine-tune these tensors show one by one.
FULL_TRAINING_KEEPS = ("layers.1.self_attn.q_proj.", "layers.1.mlp.down_proj.", "input_layernorm.", "model.norm.") + (
    ("embeddings.", "layers.1.blocks.0.attention.self.logit_scale", "continuous_position_bias_mlp.2", "downsample.norm.")
)
# One midpoint shows what resuming needs.
MIDPOINT_KEEPS = ("lora_causal_lm",)
TRAINING_TOKENS = 4
WIDTHS = {"F32": 4, "I64": 8, "BF16": 2, "F16": 2, "U8": 1}
# Of the pixels of images: the large one of every configuration, transparency once, and all resized bytes.
PIXELS_KEPT = (".rgb_large.pixel_values", ".exact_32.pixel_values", "vit_bilinear.rgba.pixel_values_on_white", ".resized_u8")


def read_tensors(path):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    data = raw[8 + length :]
    return {name: (t["dtype"], t["shape"], data[slice(*t["data_offsets"])]) for name, t in header.items()}


def write_tensors(path, tensors):
    header, chunks, at = {}, [], 0
    # Wide types first, so that every tensor is aligned.
    for name in sorted(tensors, key=lambda n: (-WIDTHS[tensors[n][0]], n)):
        dtype, shape, data = tensors[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        chunks.append(data)
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(chunks))


def tensors_of(folder):
    return read_tensors(folder / "expected.safetensors")


def cut(tensor, dim, count):
    """Keeps the first `count` entries along `dim`."""
    dtype, shape, data = tensor
    if dim >= len(shape) or shape[dim] <= count:
        return tensor
    inner = WIDTHS[dtype]
    for n in shape[dim + 1 :]:
        inner *= n
    block = shape[dim] * inner
    data = b"".join(data[at : at + count * inner] for at in range(0, len(data), block))
    return dtype, shape[:dim] + [count] + shape[dim + 1 :], data


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".json" and source.name in ("expected.json", "expected_text.json", "manifest.json"):
        write_json(target, json.loads(source.read_text(encoding="utf-8")))
    else:
        shutil.copyfile(source, target)


def language(source, target):
    keeps = LANGUAGE_KEEPS.get(source.name, ())
    for file in sorted(source.iterdir()):
        copy(file, target / file.name)
    expected = json.loads((target / "expected.json").read_text(encoding="utf-8"))
    tensors = read_tensors(source / "expected.safetensors")
    if "prefill" not in expected:
        return
    kept = {}
    for name, tensor in tensors.items():
        kind = name.split(".")[0]
        if kind in ("prefill", "bf16") and (kind in keeps or name in keeps or not name.endswith("hidden_states")):
            if kind == "bf16" and kind not in keeps:
                continue
            tensor = cut(tensor, 1, PREFILL_TOKENS)
            kept[name] = tensor if name.endswith("hidden_states") else cut(tensor, 0, 1)
        elif kind in keeps:
            kept[name] = cut(tensor, 0, PADDED_ROWS)
    write_tensors(target / "expected.safetensors", kept)
    expected["prefill"].update(rows=1, tokens=PREFILL_TOKENS)
    expected["padded"]["row_lengths"] = expected["padded"]["row_lengths"][:PADDED_ROWS]
    row0 = expected["score"]["prompt_logprobs_row0"]
    expected["score"]["prompt_logprobs_row0"] = row0[:PREFILL_TOKENS]
    write_json(target / "expected.json", expected)


def adapter_tensors(source, target, merged, rows=ADAPTER_ROWS, tokens=ADAPTER_TOKENS):
    tensors = read_tensors(source)
    if len(tensors["logits"][1]) == 3 and "attention_mask" not in tensors:
        kept = {}
        for name, tensor in tensors.items():
            if name == "merged_logits" and not merged:
                continue
            kept[name] = cut(cut(tensor, 0, rows), 1, tokens)
        tensors = kept
    target.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(target, tensors)


def adapters(source, target):
    for file in sorted((source / "base_logits").glob("language__*")):
        adapter_tensors(file, target / "base_logits" / file.name, merged=False)
    for folder in sorted(source.iterdir()):
        if not (folder / "expected.json").is_file() or folder.name in ADAPTERS_LEFT_OUT:
            continue
        expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
        if not expected["base"].startswith("language/"):
            continue
        for file in sorted(folder.iterdir()):
            if file.name == "expected.safetensors":
                # A mixed batch is nothing without all its rows.
                size = (len(expected["rows"]), MIXED_TOKENS) if "rows" in expected else (ADAPTER_ROWS, ADAPTER_TOKENS)
                adapter_tensors(file, target / folder.name / file.name, folder.name in MERGED_KEEPS, *size)
            elif file.name == "expected.json" and "rows" not in expected and "probs" not in tensors_of(folder):
                # It describes the whole input, of which a part is kept.
                write_json(target / folder.name / file.name, {k: v for k, v in expected.items() if k != "effect_max_abs"})
            elif file.name != "merged.safetensors":
                copy(file, target / folder.name / file.name)


def image_tensors(source, target, leave_out=()):
    """Tensors of fewer images; names that begin with one of `leave_out` are dropped."""
    tensors = read_tensors(source)
    kept = {n: cut(t, 0, VISION_IMAGES) for n, t in tensors.items() if not n.startswith(leave_out)}
    target.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(target, kept)


def vision(source, target):
    for name in VISION:
        # Two models show the inner values, one shows bf16.
        leave_out = ("debug.",) + (() if name == "vit" else ("bf16.",))
        if name not in ("vit", "swinv2_padded"):
            leave_out += ("hidden_states.", "last_hidden_state")
        for file in sorted((source / "vision" / name).iterdir()):
            to = target / "vision" / name / file.name
            if file.name == "expected.safetensors":
                image_tensors(file, to, leave_out)
            else:
                copy(file, to)
    bases = set()
    for name in VISION_ADAPTERS:
        for file in sorted((source / "adapters" / name).iterdir()):
            to = target / "adapters" / name / file.name
            if file.name == "expected.safetensors":
                image_tensors(file, to, ("merged_logits",))
            elif file.name == "expected.json":
                expected = json.loads(file.read_text(encoding="utf-8"))
                bases.add(expected["base"])
                write_json(to, {k: v for k, v in expected.items() if k != "effect_max_abs"})
            else:
                copy(file, to)
    for base in sorted(bases):
        file = Path("adapters/base_logits") / (base.replace("/", "__") + ".safetensors")
        # Its pixels are those of every adapter on it.
        image_tensors(source / file, target / file, ("pixel_values",))
    for folder in sorted((source / "training").iterdir()):
        if json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["base"].startswith("vision/"):
            training(folder, target / "training" / folder.name)


def broken(source, target):
    manifest = json.loads((source / "manifest.json").read_text(encoding="utf-8"))
    for name in BROKEN_LEFT_OUT:
        manifest["cases"].pop(name, None)
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / "manifest.json", manifest)
    for name in manifest["cases"]:
        for file in sorted(f for f in (source / name).rglob("*") if f.is_file()):
            copied = target / name / file.relative_to(source / name)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copied)


def training(source, target):
    """One training case: data, start and end; the gradients of the last step that has any, leading logits."""
    recipe = json.loads((source / "recipe.json").read_text(encoding="utf-8"))
    full = recipe["method"] == "full"
    gradients = max(f.name for f in source.glob("gradients_step_*.safetensors"))
    for file in sorted(f for f in source.rglob("*") if f.is_file()):
        name = file.relative_to(source)
        copied = target / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        if name.name.startswith("gradients_step_") and name.name != gradients:
            continue
        midpoint = name.name == "midpoint.safetensors" and source.name not in MIDPOINT_KEEPS
        if midpoint or name.name == "steps_float64.json":
            continue
        if full and file.suffix == ".safetensors" and name.name not in ("logits.safetensors", "data.safetensors"):
            tensors = read_tensors(file).items()
            write_tensors(copied, {n: t for n, t in tensors if any(k in n for k in FULL_TRAINING_KEEPS)})
        elif name.name == "logits.safetensors" and recipe["task"] == "causal_lm":
            logits = read_tensors(file).items()
            write_tensors(copied, {n: cut(cut(t, 0, 1), 1, TRAINING_TOKENS) for n, t in logits})
        elif name.name in ("recipe.json", "steps.json"):
            write_json(copied, json.loads(file.read_text(encoding="utf-8")))
        else:
            shutil.copyfile(file, copied)


def preprocessing(source, target):
    for file in sorted(source.iterdir()):
        copy(file, target / file.name)
    tensors = read_tensors(source / "expected.safetensors").items()
    write_tensors(target / "expected.safetensors", {n: t for n, t in tensors if n.endswith(PIXELS_KEPT)})


def main():
    full = Path(sys.argv[1])
    if sys.argv[2:] == ["vision"]:
        vision(full, HERE)
        return sizes()
    parts = ("language", "adapters", "adapters_broken", "bases_broken", "tokenizers", "chat_templates", "sampling")
    for part in (*parts, "training", "vision"):
        shutil.rmtree(HERE / part, ignore_errors=True)
    for folder in sorted((full / "language").iterdir()):
        language(folder, HERE / "language" / folder.name)
    adapters(full / "adapters", HERE / "adapters")
    broken(full / "adapters_broken", HERE / "adapters_broken")
    broken(full / "bases_broken", HERE / "bases_broken")
    for part in ("tokenizers", "chat_templates", "sampling"):
        for file in sorted((full / part).rglob("*")):
            if file.is_file():
                copy(file, HERE / part / file.relative_to(full / part))
    for folder in sorted((full / "training").iterdir()):
        if json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["base"].startswith("language/"):
            training(folder, HERE / "training" / folder.name)
    preprocessing(full / "vision" / "preprocessing", HERE / "vision" / "preprocessing")
    vision(full, HERE)
    sizes()


def sizes():
    size = sum(f.stat().st_size for f in HERE.rglob("*") if f.is_file())
    print(f"{size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

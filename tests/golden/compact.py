#!/usr/bin/env python3
"""Copies a compact part of a full set of golden values into this folder, same layout.

Usage: python3 compact.py FOLDER_OF_THE_FULL_SET    (its `models`; `audit` is beside)

Models, adapters and configurations are copied as they are; models that `RECORDED_SMALLER` names, and what belongs to
them, are left to `record_smaller.py`. Expected values are cut to leading rows and tokens (a causal model computes the
same for a prefix, an image classifier for fewer images), or left out where another case covers them: a tensor that is
absent is not compared. JSON with expected values is rewritten without spaces, with the shortest decimals of an f32.
What this server trained stays: `record_trained.py` makes it, from the inputs that are left here.
"""

import hashlib
import json
import shutil
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Models that are recorded anew in other dimensions, with their adapters and training runs. A head of 16 keeps all three
# bands of the llama3 scaling.
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
RECORDED_SMALLER = {
    "language/llama_gqa_llama3_tied": SMALL | {"head_dim": 16},
    "language/mistral_seqcls": SMALL,
    "language/mistral_sliding": SMALL,
    "vision/swinv2_padded": {"embed_dim": 8, "hidden_size": 32, "depths": [2, 1, 1]},
    "vision/swinv2_pretrained_window": {"embed_dim": 8, "hidden_size": 32, "depths": [2, 1, 1]},
    "vision/swinv2_smooth": {"embed_dim": 12, "hidden_size": 24, "depths": [2, 1]},
}
PREFILL_TOKENS = 16
# The last rows are the shortest ones.
PADDED_ROWS = 2
ADAPTER_ROWS, ADAPTER_TOKENS, MIXED_TOKENS = 1, 4, 3
# Model -> kinds of expected tensors kept; `prefill` is kept of every model.
LANGUAGE_KEEPS = {
    "llama_mha": ("padded_left", "prefill.hidden_states"),
    "llama_gqa_llama3_tied": ("padded_right",),
    "mistral_sliding": ("prefill.hidden_states",),
}
# Merged logits differ in kind for these only; elsewhere they repeat `logits`.
MERGED_KEEPS = ("all_linear", "dora", "embed_lm_head_light", "tied_embedding")
# Image classifiers, and what is left out of each: ViT shows the inner values of its first block and of its last. The
# largest Swin-v2 and its adapters are left to the full set.
VISION = {"vit": ("hidden_states.0", "hidden_states.2", "hidden_states.3")}
# Of the smaller ones this one shows its inner values.
VISION_INNER = ("swinv2_padded",)
VISION_IMAGES = 1
VISION_ADAPTERS = ("vit_bias_all", "vit_bias_lora_only", "vit_dora", "vit_qv", "vit_qv_v5_names")
# Each has a sibling of the same kind in the set.
ADAPTERS_LEFT_OUT = ("embed_lm_head", "exclude_list", "layers_to_transform")
BROKEN_LEFT_OUT = (
    ("long_tensor_name", "integer_tensors", "pickle_beside_safetensors", "pickle_bin_only")
    + ("alpha_string", "r_fraction", "r_missing", "r_negative", "targets_null", "config_array")
    + ("base_path_absolute", "base_path_url", "feature_pissa", "feature_qalora", "feature_trainable_tokens")
)
# The sum of squares of all gradients is in `steps.json`; of a full fine-tune these tensors show one by one.
FULL_TRAINING_KEEPS = ("layers.1.self_attn.q_proj.", "layers.1.mlp.down_proj.", "input_layernorm.", "model.norm.") + (
    ("embeddings.", "layers.1.blocks.0.attention.self.logit_scale", "layers.0.blocks.1.attention.self.continuous")
    + ("downsample.norm.",)
)
# One midpoint shows what resuming needs.
MIDPOINT_KEEPS = ("lora_causal_lm",)
TRAINING_TOKENS = 2
WIDTHS = {"F32": 4, "I64": 8, "I16": 2, "BF16": 2, "F16": 2, "U8": 1}
# Cases that another one of the same file covers: two attributes unweighted, longer texts, two groups, more rows.
AUDIT_LEFT_OUT = ("two_attributes", "longer", "small", "beta_300.positive_class", "beta_300.top_label")
AUDIT_TARGETS = 1
# Logits on which every value of every parameter shows; of the others, one value of each in turn, and ties at a cut.
SAMPLING_WHOLE = ("spread", "ties", "with_minus_infinity")
# Of the pixels of images: the large one of every configuration, transparency once, and all resized bytes.
PIXELS_KEPT = (".rgb_large.pixel_values", ".exact_32.pixel_values", ".resized_u8") + (
    ("vit_bilinear.rgba.pixel_values_on_white",)
)


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


def cut(tensor, dim, count, start=0):
    """Keeps `count` entries along `dim`, the first ones unless told."""
    dtype, shape, data = tensor
    if dim >= len(shape) or shape[dim] - start <= count and start == 0:
        return tensor
    inner = WIDTHS[dtype]
    for n in shape[dim + 1 :]:
        inner *= n
    block = shape[dim] * inner
    data = b"".join(data[at + start * inner :][: count * inner] for at in range(0, len(data), block))
    return dtype, shape[:dim] + [count] + shape[dim + 1 :], data


def shortest(number):
    """The shortest decimal that is the same f32, of a number that is one."""
    exact = lambda text: struct.unpack("f", struct.pack("f", float(text)))[0] == number
    if abs(number) > 3e38 or not exact(number):
        return number
    return next(float(text) for text in (f"{number:.{n}g}" for n in (6, 7, 8, 9)) if exact(text))


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return shortest(value) if isinstance(value, float) else value


def dumps(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dumps(rounded(value)), encoding="utf-8")


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
    lengths = expected["padded"]["row_lengths"][-PADDED_ROWS:]
    for name, tensor in tensors.items():
        kind, shape = name.split(".")[0], tensor[1]
        if kind == "prefill" and (name in keeps or not name.endswith("hidden_states")):
            tensor = cut(tensor, 1, PREFILL_TOKENS)
            kept[name] = tensor if name.endswith("hidden_states") else cut(tensor, 0, 1)
        elif kind in keeps:
            # Without the columns that pad all of these rows.
            start = shape[1] - max(lengths) if kind == "padded_left" else 0
            kept[name] = cut(cut(tensor, 0, PADDED_ROWS, shape[0] - PADDED_ROWS), 1, max(lengths), start)
    write_tensors(target / "expected.safetensors", kept)
    expected["prefill"].update(rows=1, tokens=PREFILL_TOKENS)
    expected["padded"]["row_lengths"] = lengths
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
        if file.stem.replace("__", "/") not in RECORDED_SMALLER:
            adapter_tensors(file, target / "base_logits" / file.name, merged=False)
    for folder in sorted(source.iterdir()):
        if not (folder / "expected.json").is_file() or folder.name in ADAPTERS_LEFT_OUT:
            continue
        expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
        if not expected["base"].startswith("language/") or expected["base"] in RECORDED_SMALLER:
            continue
        for file in sorted(folder.iterdir()):
            if file.name == "expected.safetensors":
                # A mixed batch is nothing without all its rows.
                size = (len(expected["rows"]), MIXED_TOKENS) if "rows" in expected else (ADAPTER_ROWS, ADAPTER_TOKENS)
                adapter_tensors(file, target / folder.name / file.name, folder.name in MERGED_KEEPS, *size)
            elif file.name == "expected.json" and "rows" not in expected and "probs" not in tensors_of(folder):
                # It describes the whole input, of which a part is kept.
                expected.pop("effect_max_abs")
                write_json(target / folder.name / file.name, expected)
            elif file.name != "merged.safetensors":
                copy(file, target / folder.name / file.name)


def image_tensors(source, target, leave_out=()):
    """Tensors of fewer images; names that begin with one of `leave_out` are dropped."""
    tensors = read_tensors(source)
    kept = {n: cut(t, 0, VISION_IMAGES) for n, t in tensors.items() if not n.startswith(leave_out)}
    target.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(target, kept)


def vision(source, target):
    for name, leave_out in VISION.items():
        for file in sorted((source / "vision" / name).iterdir()):
            to = target / "vision" / name / file.name
            if file.name == "expected.safetensors":
                image_tensors(file, to, ("debug.", *leave_out))
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


def training_data(source, target):
    """The data of a training case: ids and labels as I16, masks as U8."""
    tensors = read_tensors(source)
    for name, (dtype, shape, data) in tensors.items():
        if dtype == "I64":
            numbers = [n for (n,) in struct.iter_unpack("<q", data)]
            dtype, code = ("U8", "B") if name == "attention_mask" else ("I16", "h")
            tensors[name] = dtype, shape, struct.pack(f"<{len(numbers)}{code}", *numbers)
    write_tensors(target, tensors)


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
        elif name.name == "data.safetensors":
            training_data(file, copied)
        else:
            shutil.copyfile(file, copied)


def preprocessing(source, target):
    for file in sorted(source.iterdir()):
        copy(file, target / file.name)
    tensors = read_tensors(source / "expected.safetensors").items()
    write_tensors(target / "expected.safetensors", {n: t for n, t in tensors if n.endswith(PIXELS_KEPT)})


def sampling(source, target):
    whole = json.loads((source / "expected.json").read_text(encoding="utf-8"))
    turns, kept = {}, []
    for case in whole["cases"]:
        logits, parameters = case["logits"], tuple(sorted(case["params"]))
        turns.setdefault((logits, parameters), []).append(case)
    for number, ((logits, parameters), cases) in enumerate(turns.items()):
        chosen = cases if logits in SAMPLING_WHOLE else [cases[number % len(cases)]]
        kept += [c for c in cases if c in chosen or "edge" in c and logits != "all_equal"]
    # All thousand probabilities of the long one: once, of the parameters that need a sort.
    kept = [c for c in kept if c["logits"] != "long" or c["kept"] < 100 or len(c["params"]) > 1]
    write_json(target / "expected.json", whole | {"cases": kept})


def audit(source, target):
    for file in sorted(source.glob("*.json")):
        shutil.copyfile(file, target / file.name)
    manifest = json.loads((source / "manifest.json").read_text(encoding="utf-8"))
    for name, entry in manifest["files"].items():
        whole = json.loads((source / name).read_text(encoding="utf-8"))
        whole["cases"] = [case for case in whole["cases"] if case["id"] not in AUDIT_LEFT_OUT]
        for case in whole["cases"]:
            if "targets" in case.get("expected", {}):
                del case["expected"]["targets"][AUDIT_TARGETS:]
                for key in ("target_confidence", "target_membership"):
                    del case["inputs"][key][AUDIT_TARGETS:]
        (target / name).write_text(dumps(whole), encoding="utf-8")
        written = (target / name).read_bytes()
        entry.update(bytes=len(written), sha256=hashlib.sha256(written).hexdigest())
        entry["cases"] = [case["id"] for case in whole["cases"]]
    (target / "manifest.json").write_text(dumps(manifest), encoding="utf-8")


def clear(part):
    """Removes what this script writes there."""
    others = [HERE / base for base in RECORDED_SMALLER]
    for folder in sorted((HERE / part).iterdir()):
        if folder.name.startswith(("trained_", "base_logits")) or folder in others or of_smaller(folder):
            continue
        if folder.is_dir():
            shutil.rmtree(folder)
        else:
            folder.unlink()


def of_smaller(folder):
    """Whether an adapter or a training run is of a model that is recorded elsewhere."""
    facts = [folder / name for name in ("expected.json", "recipe.json") if (folder / name).is_file()]
    return any(json.loads(f.read_text(encoding="utf-8")).get("base") in RECORDED_SMALLER for f in facts)


def main():
    full = Path(sys.argv[1])
    for part in ("language", "adapters", "adapters_broken", "bases_broken", "tokenizers", "chat_templates"):
        clear(part)
    clear("training")
    clear("vision")
    for folder in sorted((full / "language").iterdir()):
        if f"language/{folder.name}" not in RECORDED_SMALLER:
            language(folder, HERE / "language" / folder.name)
    adapters(full / "adapters", HERE / "adapters")
    broken(full / "adapters_broken", HERE / "adapters_broken")
    broken(full / "bases_broken", HERE / "bases_broken")
    for part in ("tokenizers", "chat_templates"):
        for file in sorted((full / part).rglob("*")):
            if file.is_file():
                copy(file, HERE / part / file.relative_to(full / part))
    for folder in sorted((full / "training").iterdir()):
        if not of_smaller(folder):
            training(folder, HERE / "training" / folder.name)
    sampling(full / "sampling", HERE / "sampling")
    preprocessing(full / "vision" / "preprocessing", HERE / "vision" / "preprocessing")
    vision(full, HERE)
    audit(full.parent / "audit", HERE / "audit")
    sizes()


def sizes():
    size = sum(f.stat().st_size for f in HERE.rglob("*") if f.is_file())
    print(f"{size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

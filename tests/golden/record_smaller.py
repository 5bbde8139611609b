#!/usr/bin/env python3
"""Records models of the full set anew in smaller dimensions, with their adapters and training runs.

Usage: python3 tests/golden/record_smaller.py FOLDER_OF_THE_FULL_SET    (a Python with torch, transformers, peft)

Run after `compact.py`, which leaves these models alone (`RECORDED_SMALLER` says their dimensions). Architecture,
vocabulary, configuration and inputs are those of the full set; weights are random, each tensor with the mean and
deviation of its namesake there. The same code first computes what the full set records, and stops where it differs.
Greedy steps have a margin of at least 0.05 (texts 0.03); prompts without it are replaced.
"""

import json
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path

sys.dont_write_bytecode = True
os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries read it

import torch
from compact import ADAPTER_ROWS, ADAPTER_TOKENS, HERE, LANGUAGE_KEEPS, MERGED_KEEPS, PADDED_ROWS
from compact import FULL_TRAINING_KEEPS, PREFILL_TOKENS, RECORDED_SMALLER, TRAINING_TOKENS, VISION_IMAGES, VISION_INNER
from compact import copy, training_data, write_json
from jinja2 import TemplateError
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification
from transformers import AutoModelForSequenceClassification, AutoTokenizer

NEW_TOKENS, MARGIN, TEXT_MARGIN = 24, 0.05, 0.03
# What computing twice may differ by; the tests allow ten times as much.
AGREES = 5e-5
LIBRARIES = {library: version(library) for library in ("torch", "transformers", "peft", "safetensors", "tokenizers")}


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def load(folder, dtype=torch.float32):
    (name,) = read_json(folder / "config.json")["architectures"]
    kinds = (AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForImageClassification)
    (kind,) = [k for k in kinds if k.__name__.removeprefix("AutoModel") in name]
    settings = {"dtype": dtype, "attn_implementation": "eager", "output_loading_info": True}
    model, info = kind.from_pretrained(folder, **settings)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model.eval()


def random_like(tensor, namesake, generator):
    """Random values with mean and deviation of a namesake; a matrix keeps the size of what it gives."""
    inputs = lambda t: t[0].numel() if t.dim() > 1 else 1
    deviation = namesake.std(correction=0) * (inputs(namesake) / inputs(tensor)) ** 0.5
    return namesake.mean() + deviation * torch.randn(tensor.shape, generator=generator)


def fill(tensors, source, seed=0):
    """Random values for all tensors, by the file that has their namesakes."""
    namesakes, generator = load_file(source), torch.Generator().manual_seed(seed)
    return {name: random_like(tensors[name], namesakes[name], generator).contiguous() for name in sorted(tensors)}


def make_model(source, target, smaller, seed=0):
    shutil.rmtree(target, ignore_errors=True)
    for file in sorted(source.iterdir()):
        if not file.name.startswith("expected") and file.name != "model.safetensors":
            copy(file, target / file.name)
    config = read_json(source / "config.json") | smaller
    (target / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        kinds = (AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForImageClassification)
        (kind,) = [k for k in kinds if k.__name__.removeprefix("AutoModel") in config["architectures"][0]]
        kind.from_config(AutoConfig.from_pretrained(target)).save_pretrained(folder)
        tensors = load_file(Path(folder) / "model.safetensors")
    save(fill(tensors, source / "model.safetensors", seed), target / "model.safetensors")


def save(tensors, path):
    """As the libraries write files of weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})


def same(what, got, recorded, allowed=AGREES):
    """Fails unless what is computed for the full set is what it records."""
    got, recorded = torch.as_tensor(got), torch.as_tensor(recorded)
    assert got.shape == recorded.shape, (what, got.shape, recorded.shape)
    worst = (got.double() - recorded.double()).abs().max().item()
    assert worst <= allowed, f"{what}: {worst} from what the full set records"


def logprobs(model, tokens):
    return model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)


def greedy(model, prompts):
    """Of prompts of one length: new tokens, their log-probabilities, and the smallest margin."""
    tokens, found, margins = torch.tensor(prompts), [], []
    for _ in range(NEW_TOKENS):
        scores = model(input_ids=tokens).logits[:, -1].double()
        best = scores.topk(2)
        margins.append(best.values[:, 0] - best.values[:, 1])
        found.append(scores.log_softmax(-1).max(-1).values)
        tokens = torch.cat([tokens, best.indices[:, :1]], 1)
    new = tokens[:, len(prompts[0]) :]
    return [(n.tolist(), f.tolist(), m) for n, f, m in zip(new, torch.stack(found, 1), torch.stack(margins, 1))]


def greedy_case(model, prompt):
    """Of a prompt, or of another of its length that has the margin."""
    generator = torch.Generator().manual_seed(len(prompt))
    drawn = torch.randint(5, 512, (400, len(prompt)), generator=generator).tolist()
    for tokens, (output, scores, margins) in zip([prompt, *drawn], greedy(model, [prompt, *drawn])):
        if margins.min() >= MARGIN and len(set(output[:12])) > 2:
            # The last new one of the first half.
            stop = [t for i, t in enumerate(output[:12]) if t not in output[:i]][-1]
            end = {"eos_token_id": stop, "output_including_eos": output[: output.index(stop) + 1]}
            margin = margins.min().item()
            return {"prompt": tokens, "output": output, "logprobs": scores, "min_margin": margin, "eos_case": end}
    raise SystemExit(f"no prompt of {len(prompt)} tokens has the margin")


def scored(model, context, continuation):
    rows = logprobs(model, context + continuation)[len(context) - 1 : -1]
    values = [rows[i, token].item() for i, token in enumerate(continuation)]
    matches = [rows[i].argmax().item() == token for i, token in enumerate(continuation)]
    return {"continuation": continuation, "logprobs": values, "sum": sum(values), "greedy_match": matches}


def text_case(model, tokenizer, case, key="prompt_ids"):
    """The completion of a text, up to the end token; nothing where a margin is too small."""
    ((output, _, margins),) = greedy(model, [case[key]])
    stops = output.index(2) + 1 if 2 in output else len(output)
    output, margin = output[:stops], margins[:stops].min().item()
    if margin < TEXT_MARGIN:
        return None
    text = tokenizer.decode(output, skip_special_tokens=True)
    done = case | {"output_ids": output, "finish": "stop" if output[-1] == 2 else "length", "text": text}
    if "text_after_prompt_minus_prompt" in case:
        both, prompt = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (case[key] + output, case[key]))
        done["text_after_prompt_minus_prompt"] = both.removeprefix(prompt)
    return done | {"min_margin": margin}


def others(source, tokenizer, key, own):
    """Prompts, or conversations, of the other models of the full set."""
    asked = "prompt" if key == "completions" else "messages"
    texts = [read_json(file).get(key, []) for file in sorted(source.parent.glob("*/expected_text.json"))]
    new = []
    for case in chain(*texts):
        if case[asked] not in new + [case[asked] for case in own]:
            new.append(case[asked])
    if key == "completions":
        encoded = [(prompt, tokenizer(prompt)["input_ids"]) for prompt in new]
        return [{"prompt": p, "prompt_ids": ids, "text_after_prompt_minus_prompt": ""} for p, ids in encoded]
    cases = []
    for messages in new if own else []:
        with suppress(TemplateError):
            rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
            cases.append({"messages": messages, "rendered": rendered, "prompt_ids": ids})
    return cases


def padded(model, side, given):
    ids, mask, positions = (given[f"{side}.{key}"] for key in ("input_ids", "attention_mask", "position_ids"))
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    return {f"{side}.logits": logits * mask[..., None]}


def causal_tensors(model, keeps, given):
    """Expected tensors for the inputs in `given`."""
    answer = model(input_ids=given["prefill.input_ids"], output_hidden_states=True)
    values = given | {"prefill.logits": answer.logits}
    if "prefill.hidden_states" in keeps:
        values["prefill.hidden_states"] = torch.stack(answer.hidden_states)[:, 0]
    for side in ("padded_left", "padded_right"):
        values |= padded(model, side, given) if side in keeps else {}
    return values


def bf16(folder, given):
    """How far weights in bf16 move the logits, of both rows and all tokens."""
    ids = given["prefill.input_ids"]
    rounded = load(folder, torch.bfloat16)(input_ids=ids).logits.float()
    difference = (rounded - load(folder)(input_ids=ids).logits).abs()
    return {"max_abs_diff_to_f32": difference.max().item(), "mean_abs_diff_to_f32": difference.mean().item()}


def causal(source, target, smaller):
    keeps, recorded = LANGUAGE_KEEPS[source.name], load_file(source / "expected.safetensors")
    full, tokenizer = load(source), AutoTokenizer.from_pretrained(source)
    expected, texts = read_json(source / "expected.json"), read_json(source / "expected_text.json")
    done = {"tokenizer": texts["tokenizer"], "libraries": LIBRARIES}
    # The first of the random models that has the margin in as many texts.
    for seed in range(100):
        make_model(source, target, smaller, seed)
        small = load(target)
        for key in ("completions", "chats"):
            own = texts[key]
            # Then what other models were asked, until there are enough.
            found = (text_case(small, tokenizer, case) for case in own + others(source, tokenizer, key, own))
            done[key] = list(islice(filter(None, found), len(own)))
        if all(len(done[key]) == len(texts[key]) for key in ("completions", "chats")):
            break
    given = {name: t for name, t in recorded.items() if name.split(".")[0] in ("prefill", *keeps)}
    given = {name: t for name, t in given.items() if not t.is_floating_point()}
    for name, value in causal_tensors(full, keeps, given).items():
        # The full set shows hidden states of row 0.
        same(f"{source.name} {name}", value, recorded[name])
    lengths = expected["padded"]["row_lengths"][-PADDED_ROWS:]
    cut = {}
    for name, t in given.items():
        # As `compact.py` cuts them.
        columns = slice(-max(lengths), None) if name.startswith("padded_left") else slice(max(lengths))
        prefill = name.startswith("prefill")
        cut[name] = (t[:1, :PREFILL_TOKENS] if prefill else t[-PADDED_ROWS:, columns]).contiguous()
    values = causal_tensors(small, keeps, cut)
    save_file({name: value.contiguous() for name, value in values.items()}, target / "expected.safetensors")

    for case in expected["greedy"]["cases"]:
        ((output, scores, _),) = greedy(full, [case["prompt"]])
        same(f"{source.name} greedy", output, case["output"], 0)
        same(f"{source.name} greedy", scores, case["logprobs"])
    score = expected["score"]
    options = score["choices"]
    for case in score["cases"] + options["options"]:
        context = case.get("context", options["context"])
        same(f"{source.name} score", scored(full, context, case["continuation"])["logprobs"], case["logprobs"])
        case |= {key: value for key, value in scored(small, context, case["continuation"]).items() if key in case}
    (row,) = cut["prefill.input_ids"].tolist()
    score["prompt_logprobs_row0"] = [None, *scored(small, row[:1], row[1:])["logprobs"]]
    expected["greedy"] = {
        "max_new_tokens": NEW_TOKENS, "cases": [greedy_case(small, c["prompt"]) for c in expected["greedy"]["cases"]]
    }  # fmt: skip
    logits = values["prefill.logits"]
    expected["prefill"] = {"rows": 1, "tokens": PREFILL_TOKENS, "logits_std": logits.std().item()}
    expected["padded"]["row_lengths"] = lengths
    if "bf16" in expected:
        mean = bf16(source, given)["mean_abs_diff_to_f32"]
        same(f"{source.name} bf16", mean, expected["bf16"]["mean_abs_diff_to_f32"], 0.1 * mean)
        expected["bf16"] = bf16(target, given)
    for key in ("float32_noise", "sliding_window"):
        expected.pop(key, None)
    write_json(target / "expected.json", expected | {"libraries": LIBRARIES, "note": "record_smaller.py"})

    for case in texts["completions"] + texts["chats"]:
        found, parts = text_case(full, tokenizer, case), ("output_ids", "text", "finish")
        assert [found[key] for key in parts] == [case[key] for key in parts], (source.name, case, found)
    write_json(target / "expected_text.json", done)
    print(f"{source.name}: seed {seed}, {len(done['completions'])} completions, {len(done['chats'])} chats")


def classes_of(model, given):
    """Logits and probabilities of all inputs of a classifier of texts; hidden states where they are recorded."""
    values = {}
    for name in [n.removesuffix("input_ids") for n in given if n.endswith("input_ids")]:
        inputs = {k: given[name + k] for k in ("input_ids", "attention_mask") if name + k in given}
        answer = model(**inputs, output_hidden_states=True)
        values[name + "logits"], values[name + "probs"] = answer.logits, answer.logits.softmax(-1)
        values[name + "hidden_states"] = torch.stack(answer.hidden_states)[:, 0]
    return values


def classifier(source, target, smaller):
    make_model(source, target, smaller)
    recorded, full, small = load_file(source / "expected.safetensors"), load(source), load(target)
    given = {name: t for name, t in recorded.items() if t.dtype == torch.int64}
    for name, value in classes_of(full, given).items():
        if name in recorded:
            same(f"{source.name} {name}", value, recorded[name])
    values = {n: t.contiguous() for n, t in classes_of(small, given).items() if n in recorded}
    save_file(given | values, target / "expected.safetensors")
    expected, texts = read_json(source / "expected.json"), read_json(source / "expected_text.json")
    for key in ("float32_noise", "loss"):
        expected.pop(key)
    write_json(target / "expected.json", expected | {"libraries": LIBRARIES, "note": "record_smaller.py"})
    for case in texts["cases"]:
        of = lambda model: model(input_ids=torch.tensor([case["ids"]])).logits[0].tolist()
        same(f"{source.name} text", of(full), case["logits"])
        case["logits"] = of(small)
    write_json(target / "expected_text.json", texts | {"libraries": LIBRARIES})


def mask_added_once(folder, pixels):
    """By how much logits change when the mask of a shifted window is added once instead of twice."""
    model = load(folder)
    right = model(pixel_values=pixels).logits
    for module in model.modules():
        if hasattr(module, "get_attn_mask"):
            twice = module.get_attn_mask
            half = lambda *given, twice=twice, **named: None if (m := twice(*given, **named)) is None else m / 2
            module.get_attn_mask = half
    return (model(pixel_values=pixels).logits - right).abs().max().item()


def images(source, target, smaller):
    recorded, expected = load_file(source / "expected.safetensors"), read_json(source / "expected.json")
    pixels = recorded["pixel_values"][:VISION_IMAGES].contiguous()
    # Where that mistake shows in the full set it has to show here, well above the tolerance.
    shows = expected["effect_on_logits_if_wrong"]["mask_added_once_instead_of_twice"] > 0
    for seed in range(1000):
        make_model(source, target, smaller, seed)
        effect = mask_added_once(target, pixels)
        if effect > 0.02 or not shows:
            break

    def computed(folder, pixels):
        model = load(folder)
        answer, inner = model(pixel_values=pixels), model.base_model(pixel_values=pixels, output_hidden_states=True)
        values = {"logits": answer.logits, "probs": answer.logits.softmax(-1), "pooler_output": inner.pooler_output}
        if source.name in VISION_INNER:
            values["last_hidden_state"] = inner.last_hidden_state
            values |= {f"hidden_states.{i}": state[:1] for i, state in enumerate(inner.hidden_states)}
        return values

    for name, value in computed(source, recorded["pixel_values"]).items():
        same(f"{source.name} {name}", value, recorded[name])
    values = {"pixel_values": pixels} | computed(target, pixels)
    save_file({n: t.contiguous() for n, t in values.items()}, target / "expected.safetensors")
    facts = {key: expected[key] for key in ("model", "class", "attention")} | {"libraries": LIBRARIES}
    facts |= {"note": "record_smaller.py", "effect_on_logits_if_wrong": {"mask_added_once_instead_of_twice": effect}}
    write_json(target / "expected.json", facts)
    print(f"{source.name}: seed {seed}, mask added once {effect:.3g}")


def adapted(base, folder):
    return PeftModel.from_pretrained(load(base), folder).eval()


def answer(model, given):
    return model(**{k: given[k] for k in ("input_ids", "attention_mask", "pixel_values") if k in given}).logits


def written(model):
    """The tensors of an adapter as peft writes them."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "adapter_model.safetensors")


def make(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def adapter(full, name, base):
    source, target = full / "adapters" / name, HERE / "adapters" / name
    shutil.rmtree(target, ignore_errors=True)
    recorded, expected = load_file(source / "expected.safetensors"), read_json(source / "expected.json")
    same(f"{name} logits", answer(adapted(full / base, source), recorded), recorded["logits"])
    shutil.copyfile(source / "adapter_config.json", make(target / "adapter_config.json"))
    tensors = written(get_peft_model(load(HERE / base), PeftConfig.from_pretrained(source)))
    # Embeddings that peft adds unasked are not of this case.
    tensors = {n: t for n, t in tensors.items() if n in load_file(source / "adapter_model.safetensors")}
    filled = fill(tensors, source / "adapter_model.safetensors")
    save(filled, target / "adapter_model.safetensors")

    given = {n: t for n, t in recorded.items() if n in ("input_ids", "attention_mask", "pixel_values")}
    if "pixel_values" in given:
        given = {n: t[:VISION_IMAGES].contiguous() for n, t in given.items()}
    elif "attention_mask" not in given:
        given = {n: t[:ADAPTER_ROWS, :ADAPTER_TOKENS].contiguous() for n, t in given.items()}
    model = adapted(HERE / base, target)
    values = {"logits": answer(model, given)}
    with model.disable_adapter():
        plain = answer(model, given)
    layers = [(p.removeprefix("base_model.model."), m) for p, m in model.named_modules() if isinstance(m, LoraLayer)]
    settings = {"r": "r", "alpha": "lora_alpha", "scaling": "scaling"}
    modules = {path: {key: getattr(m, own)["default"] for key, own in settings.items()} for path, m in layers}
    merged = answer(adapted(HERE / base, target).merge_and_unload(), given)
    if "probs" in recorded:
        values["probs"] = values["logits"].softmax(-1)
    if name in MERGED_KEEPS or "probs" in recorded and "pixel_values" not in given:
        values["merged_logits"] = merged
    save_file(given | {n: t.contiguous() for n, t in values.items()}, target / "expected.safetensors")
    facts = {"adapter": name, "base": base, "note": expected["note"], "libraries": LIBRARIES, "modules": modules}
    facts |= {"effect_max_abs": (values["logits"] - plain).abs().max().item()}
    facts |= {"merged_vs_adapter": (values["logits"] - merged).abs().max().item()}
    assert facts["effect_max_abs"] > 0.1, facts
    write_json(target / "expected.json", facts)
    print(f"{name}: {len(modules)} modules, effect {facts['effect_max_abs']:.3g}")
    beside = HERE / "adapters/base_logits" / (base.replace("/", "__") + ".safetensors")
    inputs = {n: t for n, t in given.items() if n != "pixel_values"}
    save_file(inputs | {"logits": plain}, beside)


def trained(recipe, base, initial, data):
    """Runs a recipe: the model, and what is recorded of it."""
    model = load(base)
    if recipe["method"] == "lora":
        model = PeftModel.from_pretrained(model, initial, is_trainable=True).eval()
    names = {n: n.replace(".default", "").replace("modules_to_save.", "") for n, _ in model.named_parameters()}
    names = {n: s.removesuffix(".weight") if "magnitude" in s else s for n, s in names.items()}
    parameters = {names[n]: p for n, p in model.named_parameters() if p.requires_grad}
    assert sorted(recipe["trainable"]) == sorted(parameters) or base.is_relative_to(HERE), sorted(parameters)
    kept = lambda decays: [p for n, p in parameters.items() if (n not in recipe["weight_decay_excluded"]) == decays]
    groups = [{"params": kept(True)}, {"params": kept(False), "weight_decay": 0.0}]
    settings = {key: recipe[key] for key in ("betas", "eps", "weight_decay")}
    optimizer = torch.optim.AdamW(groups, lr=1.0, **settings)
    steps, accumulation, warmup = recipe["steps"], recipe["gradient_accumulation"], recipe["warmup_steps"]
    found = {"steps": [], "trainable": list(parameters)}

    def batch(i):
        if "images" in data:
            return {"pixel_values": data["images"][data["index"][i]]}, data["image_labels"][data["index"][i]]
        return {k: data[k][i] for k in ("input_ids", "attention_mask")}, data["labels"][i]

    def first_logits():
        with torch.no_grad():
            inputs, _ = batch(0)
            logits = model(**inputs).logits
        return logits if logits.dim() == 2 else (logits * inputs["attention_mask"][..., None])[:2]

    found["before"] = first_logits()
    for step in range(steps):
        losses, counts = [], []
        for i in range(accumulation):
            inputs, labels = batch(step * accumulation + i)
            logits = model(**inputs).logits
            if logits.dim() == 3:
                logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            loss = cross_entropy(logits, labels)
            (loss / accumulation).backward()
            losses.append(loss.item())
            counts.append((labels != -100).sum().item())
        found[f"gradients_step_{step}"] = {n: p.grad.clone() for n, p in parameters.items()} if step < 2 else None
        norm = torch.stack([p.grad.double().square().sum() for p in parameters.values()]).sum().sqrt().item()
        factor = min(1.0, recipe["max_grad_norm"] / (norm + 1e-6))
        # By cosine, after a linear rise from nothing.
        part = (step - warmup) / (steps - warmup)
        cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * part, dtype=torch.float64)).item())
        rate = recipe["learning_rate"] * (step / warmup if step < warmup else cosine)
        for parameter in parameters.values():
            parameter.grad.mul_(factor)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        facts = {"step": step, "learning_rate": rate, "loss": sum(losses) / accumulation, "grad_norm": norm}
        found["steps"].append(facts | {"clip_factor": factor, "micro_losses": losses, "micro_label_counts": counts})
    found["after"] = first_logits()
    found["final"] = {n: p.detach() for n, p in parameters.items()}
    return model, found


def training(full, name, base):
    source, target = full / "training" / name, HERE / "training" / name
    recipe, data = read_json(source / "recipe.json"), load_file(source / "data.safetensors")
    settings = [recipe[key] for key in ("scheduler", "dropout", "loss_average")]
    assert settings == ["cosine", 0.0, "mean_of_micro_batch_means"], settings
    low_rank = recipe["method"] == "lora"
    gradients = max(file.stem for file in source.glob("gradients_step_*"))
    _, found = trained(recipe, full / base, source / "initial", data)
    for got, recorded in zip(found["steps"], read_json(source / "steps.json"), strict=True):
        for key in ("learning_rate", "loss", "micro_losses", "micro_label_counts", "clip_factor"):
            same(f"{name} {key}", got[key], recorded[key])
        same(f"{name} norm", got["grad_norm"], recorded["grad_norm"], 1e-4 * recorded["grad_norm"])
    for key, file in (("final", "final/adapter_model" if low_rank else "final"), (gradients, gradients)):
        recorded = load_file(source / f"{file}.safetensors")
        assert recorded.keys() == found[key].keys()
        for tensor in recorded:
            same(f"{name} {key} {tensor}", found[key][tensor], recorded[tensor])
    for when, recorded in load_file(source / "logits.safetensors").items():
        same(f"{name} logits {when}", found[when], recorded, 2 * AGREES)

    shutil.rmtree(target, ignore_errors=True)
    training_data(source / "data.safetensors", make(target / "data.safetensors"))
    if low_rank:
        for part in ("initial", "final"):
            shutil.copyfile(source / part / "adapter_config.json", make(target / part / "adapter_config.json"))
        torch.manual_seed(0)
        begun = get_peft_model(load(HERE / base), PeftConfig.from_pretrained(source / "initial"))
        save(written(begun), target / "initial/adapter_model.safetensors")
    model, found = trained(recipe, HERE / base, target / "initial", data)
    if low_rank:
        final = written(model)
        assert final.keys() == found["final"].keys()
        save(final, target / "final/adapter_model.safetensors")
        save_file(found[gradients], target / f"{gradients}.safetensors")
    else:
        for key in ("final", gradients):
            kept = {n: t for n, t in found[key].items() if any(part in n for part in FULL_TRAINING_KEEPS)}
            save_file(kept, target / f"{key}.safetensors")
    logits = {k: found[k] if found[k].dim() == 2 else found[k][:1, :TRAINING_TOKENS] for k in ("before", "after")}
    save_file({k: v.contiguous() for k, v in logits.items()}, target / "logits.safetensors")
    write_json(target / "steps.json", found["steps"])
    for key in ("noise", "trainer_check"):
        recipe.pop(key, None)
    recipe["weight_decay_excluded"] = [n for n in recipe["weight_decay_excluded"] if n in found["trainable"]]
    write_json(target / "recipe.json", recipe | {"trainable": found["trainable"], "libraries": LIBRARIES})
    print(f"{name}: loss {found['steps'][0]['loss']:.4g} to {found['steps'][-1]['loss']:.4g}")


def main():
    full = Path(sys.argv[1])
    torch.set_num_threads(1)
    for base, smaller in RECORDED_SMALLER.items():
        source, target = full / base, HERE / base
        with torch.no_grad():
            if base.startswith("vision/"):
                images(source, target, smaller)
            else:
                (causal if "score" in read_json(source / "expected.json") else classifier)(source, target, smaller)
            for folder in sorted((full / "adapters").iterdir()):
                facts = folder / "expected.json"
                if facts.is_file() and read_json(facts)["base"] == base:
                    adapter(full, folder.name, base)
        for folder in sorted((full / "training").iterdir()):
            if read_json(folder / "recipe.json")["base"] == base:
                training(full, folder.name, base)


if __name__ == "__main__":
    main()

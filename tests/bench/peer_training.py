"""transformers + PEFT fine-tunes with the recipe on stdin (JSON) and prints what it took, as JSON.

usage: peer_training.py MODEL_FOLDER < recipe. The recipe: method (lora or full), rows [{prompt, completion}] or
[{text}], order [[row]] a step, learning_rate, warmup, rank, alpha, max_tokens, dev rows and labels to compare, and the
precision: f32, "f32 autocast to bf16" or bf16.
"""

import json
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import peer


def example(tokenizer, row, limit):
    """Ids and labels of a row: completions are learnt, texts whole."""
    if "text" in row:
        ids = tokenizer(row["text"])["input_ids"][-limit:]
        return ids, list(ids)
    prompt = tokenizer(row["prompt"])["input_ids"]
    answer = tokenizer(row["completion"])["input_ids"] + [tokenizer.eos_token_id]
    return prompt + answer, [-100] * len(prompt) + answer


def batch(examples, pad):
    """Pads at the end."""
    longest = max(len(ids) for ids, _ in examples)
    fill = lambda values, with_: values + [with_] * (longest - len(values))
    ids = torch.tensor([fill(ids, pad) for ids, _ in examples])
    labels = torch.tensor([fill(labels, -100) for _, labels in examples])
    mask = torch.tensor([fill([1] * len(ids), 0) for ids, _ in examples])
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def accuracy(model, tokenizer, recipe):
    """Share of rows whose right label is the likeliest of all labels after the prompt."""
    model.eval()
    ids = [tokenizer(label)["input_ids"][0] for label in recipe["labels"]]
    right = 0
    with torch.no_grad():
        for row in recipe["dev"]:
            prompt = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
            logits = model(input_ids=prompt).logits[0, -1, ids]
            right += recipe["labels"][int(logits.argmax())] == row["completion"]
    model.train()
    return right / max(1, len(recipe["dev"]))


def main():
    recipe = json.load(sys.stdin)
    torch.manual_seed(0)
    torch.set_num_threads(2)
    folder = sys.argv[1]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    precision = recipe.get("precision", "f32")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    before = accuracy(model, tokenizer, recipe)
    if recipe["method"] == "lora":
        config = LoraConfig(r=recipe["rank"], lora_alpha=recipe["alpha"], target_modules="all-linear",
                            lora_dropout=0.0, task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe["learning_rate"], weight_decay=0.0, fused=True)
    total, warmup = len(recipe["order"]), recipe["warmup"]
    rate = lambda step: step / warmup if step < warmup else max(0.0, (total - step) / max(1, total - warmup))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    examples = [example(tokenizer, row, recipe["max_tokens"]) for row in recipe["rows"]]
    seconds, losses = [], []
    for rows in recipe["order"]:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in precision):
            loss = model(**batch([examples[row] for row in rows], tokenizer.eos_token_id), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
    peak = peer.peak_bytes()
    after = accuracy(model, tokenizer, recipe)
    print(json.dumps({"before": before, "after": after, "seconds": seconds, "losses": losses, "peak": peak}))


main()

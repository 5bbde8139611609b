"""transformers + PEFT classify images, or learn from them, as the recipe on stdin (JSON) says; prints JSON.

usage: peer_vision.py MODEL_FOLDER < recipe. The recipe has `do`, the precision (f32, or "f32 autocast to bf16"), and
load: began (the time at which this process was started);
classify: files (base64), adapter (a PEFT folder or none), batch, repeat;
train: rows [{image, label}], batch, steps, method (lora or full), rank, alpha, learning_rate.
"""

import base64
import io
import json
import sys
import time
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

import peer
import vision_data


def pixels(processor, files):
    """From the bytes of image files to pixels, as a server has to do it."""
    images = [Image.open(io.BytesIO(base64.b64decode(file))).convert("RGB") for file in files]
    return processor(images=images, return_tensors="pt")["pixel_values"]


def with_adapter(model, folder):
    """A model with an adapter, if all of it was taken: PEFT only warns of what is missing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")
        return PeftModel.from_pretrained(model, folder)


def classify(model, processor, recipe):
    """All files, in batches; seconds of each time, those of decoding and resizing among them."""
    if recipe.get("adapter"):
        model = with_adapter(model, recipe["adapter"])
    model.eval()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled="autocast" in recipe["precision"])
    seconds, preparing = [], []
    for _ in range(recipe["repeat"]):
        began, logits, prepared = time.perf_counter(), [], 0.0
        with torch.inference_mode(), autocast:
            for at in range(0, len(recipe["files"]), recipe["batch"]):
                before = time.perf_counter()
                values = pixels(processor, recipe["files"][at:at + recipe["batch"]])
                prepared += time.perf_counter() - before
                logits += model(pixel_values=values).logits.float().tolist()
        seconds.append(time.perf_counter() - began)
        preparing.append(prepared)
    return {"seconds": seconds, "preparing": preparing, "logits": logits}


def train(model, processor, recipe):
    """Steps of AdamW with clipping; seconds and loss of each, decoding and resizing among them."""
    if recipe["method"] == "lora":
        config = LoraConfig(r=recipe["rank"], lora_alpha=recipe["alpha"], target_modules=vision_data.targets(model),
                            lora_dropout=0.0, modules_to_save=["classifier"])
        model = get_peft_model(model, config)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe["learning_rate"], weight_decay=0.0, fused=True)
    rows, batch = recipe["rows"], recipe["batch"]
    seconds, losses = [], []
    for step in range(recipe["steps"]):
        began = time.perf_counter()
        chosen = [rows[(step * batch + i) % len(rows)] for i in range(batch)]
        labels = torch.tensor([model.config.label2id[row["label"]] for row in chosen])
        with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in recipe["precision"]):
            loss = model(pixel_values=pixels(processor, [row["image"] for row in chosen]), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds, "losses": losses}


def load(recipe, loading):
    """How long it took until the model was there: of it the reading of the folder, and everything since the start."""
    return {"seconds": time.time() - recipe["began"], "loading": loading}


def main():
    recipe = json.load(sys.stdin)
    torch.manual_seed(0)
    torch.set_num_threads(2)
    began = time.perf_counter()
    processor = AutoImageProcessor.from_pretrained(sys.argv[1])
    model = AutoModelForImageClassification.from_pretrained(sys.argv[1], dtype=torch.float32)
    loading = time.perf_counter() - began
    if recipe["do"] == "load":
        answer = load(recipe, loading)
    else:
        answer = {"classify": classify, "train": train}[recipe["do"]](model, processor, recipe)
    print(json.dumps(answer | {"peak": peer.peak_bytes()}))


main()

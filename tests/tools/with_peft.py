"""Computes logits with the real transformers and peft, for what a server trained.

Reads a JSON object on stdin: `base` and `folder` (a model, and what is downloaded: a PEFT folder or a whole model),
`classifier` (of `texts` or `images`, or null) and `sequences` of token ids. Writes the logits: of each sequence
`[tokens, vocabulary]`, or `[labels]`. Nothing but these two libraries takes part: it is the outside opinion. Runs in a
Python of its own (EVENKEEL_PEFT_PYTHON), with torch, transformers and peft; CPU, f32.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the libraries read it

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForSequenceClassification


def load(base, folder, classifier):
    """Returns the model of a PEFT folder over a base, or of a folder with a whole model."""
    torch.set_num_threads(1)
    kinds = {"texts": AutoModelForSequenceClassification, "images": AutoModelForImageClassification}
    kind = kinds.get(classifier, AutoModelForCausalLM)
    settings = {"dtype": torch.float32, "attn_implementation": "eager"}
    if (Path(folder) / "adapter_config.json").is_file():
        if classifier:
            tensors = load_file(Path(folder) / "adapter_model.safetensors")
            (head,) = [value for name, value in tensors.items() if name.endswith(("score.weight", "classifier.weight"))]
            settings["num_labels"] = head.shape[0]
        model = PeftModel.from_pretrained(kind.from_pretrained(base, **settings), folder)
    else:
        model, info = kind.from_pretrained(folder, output_loading_info=True, **settings)
        assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model.eval()


def logits(model, sequences):
    """Returns the logits of each sequence. One by one: a classifier finds the last token by padding, and needs none."""
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids])).logits[0] for ids in sequences]


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    sequences = asked.pop("sequences")
    json.dump([found.tolist() for found in logits(load(**asked), sequences)], sys.stdout)

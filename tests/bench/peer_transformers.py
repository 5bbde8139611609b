"""transformers + PEFT. usage: peer_transformers.py MODEL_DIR f32|bf16 ADAPTER_DIR, or --prepare GGUF MODEL_DIR ADAPTER_DIR..."""

import os
import sys
import time

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import peer

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def prepare(gguf, model_dir, adapter_dirs):
    """Dequantises the GGUF into a Hugging Face folder and writes random rank-8 adapters on all linear layers."""
    folder, name = os.path.split(gguf)
    if not os.path.exists(f"{model_dir}/config.json"):
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        weights = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, gguf_file=name))
        weights.load_state_dict(model.state_dict())  # a model read from GGUF refuses to be saved itself
        weights.to(torch.float32).save_pretrained(model_dir)
        AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(model_dir)
    for seed, adapter in enumerate(adapter_dirs):
        if os.path.exists(f"{adapter}/adapter_config.json"):
            continue
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=LINEAR, task_type="CAUSAL_LM"))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.01)
        model.save_pretrained(adapter)


class Transformers:
    def __init__(self, model_dir, dtype, adapter_dir):
        torch.set_num_threads(2)
        self.dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
        base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=self.dtype)
        self.base = base.eval()
        self.adapter_dir = adapter_dir
        self.peft = None
        self.tokenizer = None

    def generate(self, streams, prompt, new, seed, adapters=0):
        if adapters and self.peft is None:
            self.peft = PeftModel.from_pretrained(self.base, self.adapter_dir).to(self.dtype).eval()
        model = self.peft if self.peft is not None else self.base
        if self.peft is not None and not adapters:
            with self.peft.disable_adapter():
                return self._generate(model, streams, prompt, new, seed)
        return self._generate(model, streams, prompt, new, seed)

    def _generate(self, model, streams, prompt, new, seed):
        ids = torch.tensor(peer.prompts(streams, prompt, model.config.vocab_size, seed))
        with torch.inference_mode():
            begin = time.perf_counter()
            out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            first = time.perf_counter()
            for _ in range(new - 1):
                out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
                token = out.logits[:, -1].argmax(-1, keepdim=True)
            end = time.perf_counter()
        return {"first": first - begin, "total": end - begin, "after": streams * (new - 1)}

    def memory(self):
        return {"peak": peer.peak_bytes()}

    def score(self, rows):
        """Seconds for two-choice items in batches of 32, shortest first, the head on the continuations only; and the
        likelier choice of each."""
        self.tokenizer = self.tokenizer or AutoTokenizer.from_pretrained(self.base.config._name_or_path)
        ids = lambda text: self.tokenizer(text)["input_ids"]
        begin = time.perf_counter()
        sequences = []
        for item, (context, *choices) in enumerate(rows):
            start = ids(context)
            sequences += [(item, choice, start + ids(text), len(start)) for choice, text in enumerate(choices)]
        sequences.sort(key=lambda sequence: len(sequence[2]))
        sums = [[0.0, 0.0] for _ in rows]
        with torch.inference_mode():
            for first in range(0, len(sequences), 32):
                batch = sequences[first:first + 32]
                width = max(len(sequence[2]) for sequence in batch)
                # Padded on the right: the causal mask alone is exact.
                padded = torch.tensor([s[2] + [0] * (width - len(s[2])) for s in batch])
                hidden = self.base.model(input_ids=padded, use_cache=False).last_hidden_state
                places = [(r, p) for r, s in enumerate(batch) for p in range(s[3], len(s[2]))]
                picked = hidden[[r for r, _ in places], [p - 1 for _, p in places]]
                logprobs = self.base.lm_head(picked).float().log_softmax(-1)
                targets = torch.tensor([batch[r][2][p] for r, p in places])
                for (r, _), value in zip(places, logprobs.gather(1, targets[:, None])[:, 0].tolist()):
                    sums[batch[r][0]][batch[r][1]] += value
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "choices": [own.index(max(own)) for own in sums]}

    def load(self, directory):
        """Seconds to load another adapter, then to make it the active one."""
        if self.peft is None:
            self.peft = PeftModel.from_pretrained(self.base, self.adapter_dir).to(self.dtype).eval()
        begin = time.perf_counter()
        self.peft.load_adapter(directory, "second")
        loaded = time.perf_counter()
        self.peft.set_adapter("second")
        swapped = time.perf_counter()
        self.peft.set_adapter("default")
        self.peft.delete_adapter("second")
        return {"load": loaded - begin, "swap": swapped - loaded}


if __name__ == "__main__":
    if sys.argv[1] == "--prepare":
        prepare(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        peer.serve(Transformers(*sys.argv[1:4]))

"""transformers + PEFT on the GPU, in bf16. usage: peer_device.py MODEL_FOLDER, then commands as in tests/bench/peer.py.

As fast as these libraries are without compiling: attention by torch's own kernels, adapters in bf16, rows of different
adapters in one batch (`adapter_names`), fused AdamW, automatic mixed precision in training.
"""

import sys
import time

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import peer
import peer_transformers
import shapes


SERVING = torch.bfloat16 if shapes.DEVICE == "cuda" else torch.float32


def wait():
    if shapes.DEVICE == "cuda":
        torch.cuda.synchronize()


class OnDevice(peer_transformers.Transformers):
    def __init__(self, folder):
        logging.disable_progress_bar()
        self.folder, self.peft, self.base = folder, None, None
        self.read(SERVING)

    def read(self, dtype):
        """Reads the model anew, in another format if wanted."""
        self.dtype, self.base, self.peft = dtype, None, None
        self.free()
        place = {"device_map": {"": 0}} if shapes.DEVICE == "cuda" else {}
        self.base = AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype, **place).eval()

    def free(self):
        if shapes.DEVICE == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def attach(self, folders):
        """Loads those that are not there yet, named by their place; seconds of each."""
        seconds = []
        for place in range(len(self.peft.peft_config) if self.peft else 0, len(folders)):
            begin = time.perf_counter()
            how = dict(autocast_adapter_dtype=False, low_cpu_mem_usage=True)
            if self.peft is None:
                self.peft = PeftModel.from_pretrained(self.base, folders[place], adapter_name=str(place), **how)
                self.peft = self.peft.to(self.base.device, self.dtype).eval()
            else:
                self.peft.load_adapter(folders[place], str(place), torch_device=str(self.base.device), **how)
            wait()
            seconds.append(time.perf_counter() - begin)
        return {"seconds": seconds}

    def generate(self, streams, prompt, new, seed, adapters=0):
        if not adapters:
            assert self.peft is None, "without adapters comes first: PEFT's layers stay"
            return self._timed(self.base, streams, prompt, new, seed)
        self.peft.set_adapter("0")
        mixed = {"adapter_names": [str(i % adapters) for i in range(streams)]} if adapters > 1 else {}
        return self._timed(self.peft, streams, prompt, new, seed, **mixed)

    def _timed(self, model, streams, prompt, new, seed, **other):
        ids = peer.prompts(streams, prompt, self.base.config.vocab_size, seed)
        how = dict(use_cache=True, logits_to_keep=1, **other)
        with torch.inference_mode():
            wait()
            begin = time.perf_counter()
            out = model(input_ids=torch.tensor(ids, device=shapes.DEVICE), **how)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            token.tolist()  # a client has it
            first = time.perf_counter()
            for _ in range(new - 1):
                out = model(input_ids=token, past_key_values=out.past_key_values, **how)
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                token.tolist()
            end = time.perf_counter()
        return {"first": first - begin, "total": end - begin, "after": streams * (new - 1)}

    def swap(self, place, prompt, seed):
        """Seconds from another active adapter to the first token of this one, and to that token again."""
        begin = time.perf_counter()
        self.peft.set_adapter(str(place))
        switched = time.perf_counter() - begin
        again = self._timed(self.peft, 1, prompt, 1, seed)["first"]
        return {"first": switched + self._timed(self.peft, 1, prompt, 1, seed)["first"], "again": again}

    def score(self, items, batch):
        """Seconds for `(prompt, candidates)` in ids, sorted by length, the head on the candidates' places only; and the
        sums of log-probabilities."""
        wait()
        begin = time.perf_counter()
        sequences = [(i, j, prompt + own, len(prompt)) for i, (prompt, candidates) in enumerate(items)
                     for j, own in enumerate(candidates)]
        sequences.sort(key=lambda sequence: len(sequence[2]))
        sums = [[0.0] * len(candidates) for _, candidates in items]
        with torch.inference_mode():
            for at in range(0, len(sequences), batch):
                part = sequences[at:at + batch]
                width = max(len(ids) for _, _, ids, _ in part)
                # Padded on the right: the causal mask alone is exact.
                padded = torch.tensor([ids + [0] * (width - len(ids)) for _, _, ids, _ in part], device=shapes.DEVICE)
                hidden = self.base.model(input_ids=padded, use_cache=False).last_hidden_state
                rows, places = zip(*[(r, p) for r, s in enumerate(part) for p in range(s[3], len(s[2]))])
                picked = hidden[list(rows), [p - 1 for p in places]]
                targets = torch.tensor([part[r][2][p] for r, p in zip(rows, places)], device=shapes.DEVICE)
                values = self.base.lm_head(picked).float().log_softmax(-1).gather(1, targets[:, None])[:, 0].tolist()
                for r, value in zip(rows, values):
                    sums[part[r][0]][part[r][1]] += value
        return {"seconds": time.perf_counter() - begin, "sums": sums}

    def train(self, method, modules, rank, rows, length, batch, steps):
        """Seconds of each step, losses, and the most bytes that torch held."""
        if method == "full" and self.dtype != torch.float32:
            self.read(torch.float32)
        model = self.base
        model.requires_grad_(method == "full")
        if method == "lora":
            config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules, task_type="CAUSAL_LM")
            model = get_peft_model(self.base, config)
        model.train()
        self.free()
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
        ids = torch.tensor([shapes.ids_of(text)[-length:] for text in rows], device=shapes.DEVICE)
        seconds, losses = [], []
        for step in range(steps):
            wait()
            begin = time.perf_counter()
            own = ids[[(step * batch + i) % len(rows) for i in range(batch)]]
            with torch.autocast(shapes.DEVICE, torch.bfloat16):
                loss = model(input_ids=own, labels=own, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            seconds.append(time.perf_counter() - begin)
        peak = torch.cuda.max_memory_reserved() if shapes.DEVICE == "cuda" else peer.peak_bytes()
        del optimizer, trained, loss
        if method == "full":
            self.read(SERVING)
        else:
            self.base = model.unload().eval()
            self.free()
        return {"seconds": seconds, "losses": losses, "peak": peak}


if __name__ == "__main__":
    peer.serve(OnDevice(sys.argv[1]))

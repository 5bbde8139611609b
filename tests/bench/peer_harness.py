"""lm-evaluation-harness on transformers, which computes all logits. usage: peer_harness.py MODEL_DIR f32|bf16"""

import contextlib
import sys
import time

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

import peer


class Harness:
    def __init__(self, folder, dtype):
        torch.set_num_threads(2)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype={"f32": torch.float32, "bf16": torch.bfloat16}[dtype])
        self.model = HFLM(pretrained=model.eval(), tokenizer=AutoTokenizer.from_pretrained(folder), backend="causal",
                          batch_size=32, max_length=2048)

    def score(self, rows):
        """Seconds for two-choice items in batches of 32, and the likelier choice of each."""
        asked = [Instance("loglikelihood", {}, (context, choice), 0) for context, *choices in rows for choice in choices]
        begin = time.perf_counter()
        # It prints; answers to the benchmark go where prints go.
        with contextlib.redirect_stdout(sys.stderr):
            sums = [total for total, _ in self.model.loglikelihood(asked, disable_tqdm=True)]
        seconds = time.perf_counter() - begin
        pairs = zip(sums[::2], sums[1::2])
        return {"seconds": seconds, "choices": [int(second > first) for first, second in pairs]}


if __name__ == "__main__":
    peer.serve(Harness(*sys.argv[1:3]))

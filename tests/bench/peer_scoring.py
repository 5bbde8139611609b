"""transformers scores the rows on stdin (JSON) as evenkeel's audits do, and prints how long it took, as JSON.

usage: peer_scoring.py MODEL_FOLDER < {"items": [[prompt, [candidate]]], "batch": 32}. Sequences are sorted by length and
padded in batches, the language head computes the candidates' places only: the fastest way that is known.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import peer


def main():
    command = json.load(sys.stdin)
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    begin = time.perf_counter()
    sequences = []
    for item, (prompt, candidates) in enumerate(command["items"]):
        # A text without a prompt is predicted from the end of a text, as lm-evaluation-harness does.
        start = tokenizer(prompt)["input_ids"] if prompt else [tokenizer.eos_token_id]
        for number, candidate in enumerate(candidates):
            ids = start + tokenizer(candidate)["input_ids"]
            sequences.append((item, number, ids, len(start)))
    sequences.sort(key=lambda sequence: len(sequence[2]))
    scores = [[0.0] * len(candidates) for _, candidates in command["items"]]
    with torch.inference_mode():
        for at in range(0, len(sequences), command["batch"]):
            score(model, sequences[at:at + command["batch"]], scores)
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "scores": scores, "peak": peer.peak_bytes(),
                      "tokens": sum(len(sequence[2]) for sequence in sequences)}))


def score(model, batch, scores):
    """Adds the log-probabilities of one batch."""
    longest = max(len(ids) for _, _, ids, _ in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros(len(batch), longest, dtype=torch.long)
    places, targets, owners = [], [], []
    for row, (item, number, sequence, start) in enumerate(batch):
        ids[row, :len(sequence)] = torch.tensor(sequence)
        mask[row, :len(sequence)] = 1
        for place in range(start, len(sequence)):
            places.append(row * longest + place - 1)
            targets.append(sequence[place])
            owners.append((item, number))
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden.view(-1, hidden.shape[-1])[places]).float()
    values = logits.log_softmax(-1).gather(1, torch.tensor(targets)[:, None])[:, 0].tolist()
    for (item, number), value in zip(owners, values):
        scores[item][number] += value


main()

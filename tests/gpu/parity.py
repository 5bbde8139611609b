"""Compares a server in bf16 with transformers and PEFT on the same GPU, by one model of random weights.

Scores and greedy tokens without an adapter, with LoRA and with DoRA (made by peft), and losses of 10 steps. Who computes
in bf16 rounds, each at other places, so the reference is f32 on the same weights: the server may be off by twice what
transformers in bf16 is off, and a greedy token may be another one where f32 sees as small a difference. In training it
is the most that a loss is off, in parts of the loss.
Prints one line a check; the exit code is 1 where one fails. usage: see run.sh.
"""

import argparse

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import checking
import peer
import shapes
from server import Server, succeeded, texts

PROMPT, NEW = 40, 48
# Where rounding is smaller than what log-probabilities are computed with.
FLOOR = 2e-3
# Of losses: the initial values of an adapter are drawn by each side.
LOSS_FLOOR = 0.01
STEPS = 10
ADAPTERS = {
    "": None,
    "lora": dict(r=16, lora_alpha=32, target_modules=shapes.LINEAR),
    "dora": dict(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj", "down_proj"], use_dora=True),
}


def load(folder, dtype, adapter=None):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(shapes.DEVICE)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    return model.eval()


def write_adapters(folder, work):
    """Adapters as peft writes them, with an effect."""
    for seed, (name, settings) in enumerate(ADAPTERS.items()):
        if not settings:
            continue
        torch.manual_seed(seed)
        model = get_peft_model(load(folder, torch.float32), LoraConfig(task_type="CAUSAL_LM", **settings))
        for parameter, weight in model.named_parameters():
            if "lora_B" in parameter:
                torch.nn.init.normal_(weight, std=0.05)
            if "magnitude" in parameter:
                weight.data *= 1.1
        model.save_pretrained(f"{work}/adapters/{name}")


def logits(model, sequences):
    """Logits in f32, `[sequences, tokens, vocabulary]`."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor(sequences, device=shapes.DEVICE), use_cache=False).logits.float()


def continuations(values, sequences):
    """Log-probabilities of what comes after the prompt."""
    targets = torch.tensor(sequences, device=shapes.DEVICE)[:, PROMPT:, None]
    return values[:, PROMPT - 1:-1].log_softmax(-1).gather(2, targets)[..., 0]


def compare_scores(server, exact, rounded, adapter):
    sequences = peer.prompts(8, PROMPT + NEW, server.vocab, 7)
    reference = continuations(logits(exact, sequences), sequences)
    theirs = (continuations(logits(rounded, sequences), sequences) - reference).abs().max().item()
    ours = torch.tensor([server.score(s[:PROMPT], s[PROMPT:], adapter) for s in sequences], device=shapes.DEVICE)
    off = (ours - reference).abs().max().item()
    assert off <= 2 * theirs + FLOOR, f"off by {off:.2e}, transformers in bf16 by {theirs:.2e}"
    return f"off by {off:.2e}, transformers in bf16 by {theirs:.2e}"


def compare_greedy(server, exact, rounded, adapter):
    prompts = peer.prompts(4, PROMPT, server.vocab, 8)
    sequences = [prompt + server.stream(prompt, NEW, adapter)[0] for prompt in prompts]
    reference, theirs = logits(exact, sequences), logits(rounded, sequences)
    rounding = (reference - theirs)[:, PROMPT - 1:-1].abs().max().item()
    chosen = torch.tensor(sequences, device=shapes.DEVICE)[:, PROMPT:, None]
    places = reference[:, PROMPT - 1:-1]
    behind = places.max(-1).values - places.gather(2, chosen)[..., 0]
    worst = behind.max().item()
    assert worst <= 2 * rounding + FLOOR, f"a token is {worst:.2e} behind the best, bf16 rounds by {rounding:.2e}"
    return f"{(behind == 0).float().mean().item():.1%} are those of f32, the others within {worst:.2e}"


def theirs(folder, method, rows, rate, limit, rounded):
    """Losses of a loop with PEFT, every row in every step; rounded: products in bf16, frozen weights too."""
    torch.manual_seed(0)
    model = load(folder, torch.bfloat16 if method == "lora" and rounded else torch.float32)
    if method == "lora":
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **ADAPTERS["lora"]))
    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    ids = torch.tensor([(shapes.ids_of(text) + [shapes.END_OF_TEXT])[-limit:] for text in rows], device=shapes.DEVICE)
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate * (STEPS - step) / STEPS
        with torch.autocast(shapes.DEVICE, torch.bfloat16, enabled=rounded):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def compare_training(server, folder, method):
    limit, rate = 128, 1e-3 if method == "lora" else 1e-4
    rows = checking.sentences(8, 2 * limit, 3)
    server.client.upload_dataset("rows", texts(rows), format="DATASET_FORMAT_JSONL", text_column="text")
    how = {"full": {}} if method == "full" else {
        "lora": {"rank": ADAPTERS["lora"]["r"], "alpha": ADAPTERS["lora"]["lora_alpha"]}}
    losses, _, job = server.tuned(f"tuned-{method}", "rows", steps=STEPS, batch_size=len(rows), max_tokens=limit,
                                  learning_rate=rate, **how)
    succeeded(job)
    exact, rounded = (theirs(folder, method, rows, rate, limit, rounded) for rounded in (False, True))
    off, allowed = (max(abs(a - b) / b for a, b in zip(values, exact)) for values in (losses, rounded))
    told = f"off by {off:.2%}, PEFT in bf16 by {allowed:.2%}: " + " ".join(
        f"{a:.3f}/{b:.3f}" for a, b in zip(losses, exact))
    assert len(losses) == STEPS and off <= 2 * allowed + LOSS_FLOOR and losses[-1] < losses[0], told
    return told


def main():
    parser = argparse.ArgumentParser()
    for name in ("program", "device", "work"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--tiny", action="store_true", help="the smallest model")
    options = parser.parse_args()
    logging.disable_progress_bar()
    folder = f"{options.work}/parity/model"
    shapes.write_model("tiny" if options.tiny else "middle", folder, seed=5)
    write_adapters(folder, f"{options.work}/parity")
    checks = checking.Checks()
    with Server(options.program, folder, f"{options.work}/parity", options.device, dtype="bf16",
                adapters=f"{options.work}/parity/adapters") as server:
        for name, settings in ADAPTERS.items():
            of, path = name or "base", f"{options.work}/parity/adapters/{name}" if settings else None
            exact, rounded = load(folder, torch.float32, path), load(folder, torch.bfloat16, path)
            if settings:
                checks.run(f"load {of}", server.register, name, name)
            checks.run(f"scores of {of}", compare_scores, server, exact, rounded, name)
            checks.run(f"greedy tokens of {of}", compare_greedy, server, exact, rounded, name)
        for method in ("lora", "full"):
            checks.run(f"training, {method}", compare_training, server, folder, method)
        if checks.failed:
            print(server.tail())
    checks.end()


if __name__ == "__main__":
    main()

"""Measures evenkeel and transformers + PEFT on one GPU, each beside what the machine allows.

For each shape: a model of random weights, a server that trains alone on the GPU, then a process of the peer beside it that
trains, then both serve in turn. Memory of training is what the process takes, without what the server reserves for keys
and values. Limits: a decoding step reads weights, adapters and cache once, at the measured rate of
a copy; a prompt takes 2 operations a weight and token, LoRA training 4 (nothing is computed for frozen weights), full
training 6, at the measured rate of a product. Writes figures.json and figures.md. usage: see run.sh.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import os
import random
import shutil
import statistics
import subprocess
import time

import torch

import bench
import checking
import limits
import shapes
from book import Book, short
from server import Crowd, Server, succeeded, texts

HERE = os.path.dirname(os.path.abspath(__file__))
RANK = 16
DECODE_PROMPT = 16
TEXT = dict(format="DATASET_FORMAT_JSONL", text_column="text")


class Plan:
    """What is measured of a shape. `decode` has streams by number of adapters; training is (method, layers, tokens, rows)."""

    def __init__(self, decode, prefill=(512, 2048), score=128, swaps=8, training=(), new=64):
        self.decode, self.prefill, self.score, self.swaps, self.training = decode, prefill, score, swaps, training
        self.new = new
        self.adapters = max(decode)


LORA_7B = [("lora", "all linear", 512, 8), ("lora", "all linear", 2048, 2), ("lora", "q and v", 512, 8)]
PLANS = {
    "llama-2-7b": Plan({0: [1, 8, 32, 64], 1: [1, 8, 32, 64], 8: [8, 32, 64], 32: [32, 64]}, training=LORA_7B),
    "smollm2-135m": Plan({0: [1, 32], 1: [1, 32]},
                         training=[("lora", "all linear", 512, 16), ("full", "", 512, 16), ("full", "", 2048, 4)]),
    "mistral-7b": Plan({0: [1, 32], 1: [1]}, swaps=0, score=0),
}
QUICK = {"llama-2-7b": Plan({0: [1, 32], 1: [1], 32: [32]}, prefill=(512,), score=0, swaps=4, training=LORA_7B[:1])}
TINY_TRAINING = [("lora", "all linear", 64, 4), ("lora", "q and v", 32, 4), ("full", "", 64, 2)]
TINY = {
    "tiny": Plan({0: [1, 8, 32, 64], 1: [1, 32], 8: [8, 32], 32: [32]}, (64, 512), 16, 4, TINY_TRAINING, 6),
    "tiny-mistral": Plan({0: [1, 4], 1: [1]}, (64,), 0, 0, (), 6),
}
MODULES = {"all linear": shapes.LINEAR, "q and v": ["q_proj", "v_proj"], "": []}


class Bench:
    """One shape: its files, the server, the peer."""

    def __init__(self, book, options, name, plan):
        self.book, self.options, self.name, self.plan = book, options, name, plan
        self.work = f"{options.work}/{name}"
        self.folder, self.root = f"{self.work}/model", f"{self.work}/adapters"
        self.weights = 2 * shapes.parameters(name, read_in_a_step=True)
        modules = shapes.LINEAR
        self.adapter_bytes = 2 * RANK * sum(sum(shape) for tensor, shape in shapes.tensors(name)
                                            if tensor.removesuffix(".weight").rsplit(".", 1)[-1] in modules)
        self.server = self.child = self.crowd = None
        self.revived = 0

    def add(self, *values, **named):
        self.book.add(self.name, *values, **named)

    def write(self):
        shapes.write_model(self.name, self.folder)
        for seed in range(self.plan.adapters):
            shapes.write_adapter(self.name, f"{self.root}/a{seed}", seed, RANK)

    def start(self):
        """The server alone, so that what it takes can be told."""
        self.before = limits.used() if limits.ON_GPU else 0
        context = shapes.SHAPES[self.name]["max_position_embeddings"]
        longest = max(*self.plan.prefill, 64 * (DECODE_PROMPT + self.plan.new)) + 64
        self.kv = max(2 * longest * shapes.kv_bytes(self.name), 64 << 20)
        # Nothing is claimed for jobs: what training takes is measured.
        settings = dict(JOBS__MEMORY_BYTES=0, ENGINE__KV_CACHE_BYTES=self.kv, ENGINE__MAX_STEP_TOKENS=min(2048, context),
                        ENGINE__MAX_RUNNING_SEQUENCES=64, ENGINE__MAX_WAITING_SEQUENCES=4096,
                        REGISTRY__MEMORY_BYTES=max(1 << 30, 3 * 2 * self.plan.adapters * self.adapter_bytes))
        self.server = Server(self.options.program, self.folder, self.work, self.options.device, adapters=self.root,
                             **settings)
        self.crowd = Crowd(self.server.address, max(1, min(8, os.cpu_count() // 2)))

    def answering(self):
        """Whether the server computes: a device can fail under a process that lives."""
        try:
            self.ours(1, 4, 2, 0, bench.first, rounds=1)
        except Exception as fault:
            self.book.note(f"FAILED {self.name}: the server no longer answers: {short(fault)}")
            return False
        return True

    def revive(self):
        """Starts another server with the same adapters, once or twice."""
        print(f"log of the server:\n{self.server.tail()}", flush=True)
        names = self.server.names
        self.crowd.close()
        self.server.kill()
        self.revived += 1
        self.start()
        for name in names:
            self.server.register(name, name)

    def attempt(self, title, part, *arguments):
        """One part, if there is time; what follows finds a server that answers, as far as that can be had."""
        title = f"{self.name}: {title}"
        if not self.book.has(5, title):
            return None
        failed, found = len(self.book.notes), None
        with self.book.part(title):
            found = part(*arguments)
        if any(note.startswith("FAILED") for note in self.book.notes[failed:]) and self.revived < 2:
            with self.book.part(f"{title}: the server after that"):
                if not self.answering():
                    self.revive()
        return found

    def start_peer(self):
        with self.peer_lost():
            self.child = bench.Child(f"{HERE}/peer_device.py", self.folder)

    def stop(self):
        for one in (self.crowd, self.child, self.server):
            if one:
                one.close()
        self.crowd = self.child = self.server = None
        shutil.rmtree(self.work, ignore_errors=True)

    def ours(self, streams, prompt, new, adapters, figure, rounds=3):
        """Median of rounds after one that warms up (it records the step)."""
        for place in range(len(self.server.names), adapters):
            self.server.register(f"a{place}", f"a{place}")
        names = self.server.names[:adapters] or [""]
        found = []
        for seed in range(rounds + 1):
            answer = self.crowd.generate(streams, prompt, new if seed else min(new, 4), self.server.vocab, seed, names)
            found.append(figure(answer, dict(streams=streams, prompt=prompt, new=new)))
        return statistics.median(found[1:])

    def theirs(self, streams, prompt, new, adapters, figure):
        asked = dict(streams=streams, prompt=prompt, new=new)
        if not self.child:
            return None
        with self.peer_lost():
            self.child.generate(**asked | {"new": min(new, 2)}, seed=0, adapters=adapters)
            return figure(self.child.generate(**asked, seed=1, adapters=adapters), asked)

    @contextlib.contextmanager
    def peer_lost(self):
        """Without the peer there are ours still."""
        try:
            yield
        except Exception as fault:
            if self.child:
                self.child.process.kill()
            self.child = None
            self.book.note(f"FAILED {self.name}: the peer: {short(fault)}")

    def decode(self, streams, adapters, with_peer=True):
        new, prompt = self.plan.new, DECODE_PROMPT
        suffix = "" if not adapters else ", 1 adapter" if adapters == 1 else f", {adapters} adapters"
        moved = self.weights + adapters * self.adapter_bytes
        moved += streams * (prompt + new // 2) * shapes.kv_bytes(self.name)
        operations = streams * (self.weights + (self.adapter_bytes if adapters else 0))
        rates = self.book.limits
        limit = streams / max(moved / rates["bytes/s"], operations / rates["operations/s"])
        ours = self.ours(streams, prompt, new, adapters, bench.decode)
        # Mixed adapters take PEFT long.
        few = new if adapters <= 1 else 6
        theirs = self.theirs(streams, prompt, min(new, 24, few), adapters, bench.decode) if with_peer else None
        self.add(f"decode {streams}{suffix}, tokens/s", ours, theirs, limit)

    def prefill(self, prompt):
        flops = self.weights  # 2 operations a weight, 2 bytes a weight
        limit = self.book.limits["operations/s"] / flops
        ours, theirs = (side(1, prompt, 1, 0, bench.first) for side in (self.ours, self.theirs))
        self.add(f"first token after {prompt}, ms", ours, theirs, 1e3 * prompt / limit, lower=True)
        self.add(f"prefill {prompt}, tokens/s", 1e3 * prompt / ours, theirs and 1e3 * prompt / theirs, limit)

    def first_token(self):
        ours, theirs = (side(1, 128, 1, 0, bench.first) for side in (self.ours, self.theirs))
        self.add("first token after 128, ms", ours, theirs, lower=True)

    def register(self):
        seconds = []
        for place in range(self.plan.adapters):
            begin = time.perf_counter()
            self.server.register(f"a{place}", f"a{place}")
            seconds.append(time.perf_counter() - begin)
        folders = [f"{self.root}/a{place}" for place in range(self.plan.adapters)]
        attached = []
        if self.child:
            with self.peer_lost():
                attached = self.child.attach(folders=folders[:1 + self.plan.swaps])["seconds"]
        self.add(f"load an adapter of rank {RANK} on all linear layers, ms", 1e3 * statistics.median(seconds),
                 1e3 * statistics.median(attached[1:] or attached) if attached else None, lower=True)

    def swap(self):
        """From host memory to a slot: adapters that were read anew, against themselves once they are there."""
        prompt, more, first, theirs = 8, [], [], []
        ask = lambda seed, name: self.crowd.generate(1, prompt, 1, self.server.vocab, seed, [name])["first"]
        for seed in range(3):
            ask(seed, self.server.names[0])
        for place in range(1, self.plan.swaps):
            self.server.recall(f"a{place}")
            begin, again = ask(place, f"a{place}"), [ask(place, f"a{place}") for _ in range(3)]
            first.append(begin)
            more.append(begin - statistics.median(again))
            if not self.child:
                continue
            with self.peer_lost():
                answer = self.child.swap(place=place, prompt=prompt, seed=place)
                theirs.append((answer["first"], answer["first"] - answer["again"]))
        middle = lambda values: 1e3 * statistics.median(values) if values else None
        self.add("swap: first token with an adapter from host memory, ms", middle(first),
                 middle([both for both, _ in theirs]), lower=True)
        self.add("swap, ms more", middle(more), middle([own for _, own in theirs]), lower=True)

    def score(self):
        draw = random.Random(3)
        ids = lambda count: [draw.randrange(300, self.server.vocab) for _ in range(count)]
        items = [(ids(draw.randrange(24, 72)), [ids(4), ids(4)]) for _ in range(self.plan.score)]
        self.crowd.score(items)
        seconds, values = self.crowd.score(items)
        theirs = None
        if self.child:
            with self.peer_lost():
                self.child.score(items=items, batch=64)
                theirs = self.child.score(items=items, batch=64)
        tokens = sum(len(prompt) + sum(map(len, candidates)) for prompt, candidates in items)
        limit = self.book.limits["operations/s"] / (self.weights * tokens / len(items))
        self.add("two-choice items/s", len(items) / seconds, theirs and len(items) / theirs["seconds"], limit)
        if not theirs:
            return
        off = max(abs(sum(a) - b) for ours, own in zip(values, theirs["sums"]) for a, b in zip(ours, own))
        self.book.note(f"{self.name}: sums of 4 log-probabilities differ by {off:.3f} at most")

    def serve(self):
        """All figures of serving, the most asked for first; those without adapters before PEFT's layers are there."""
        plan = self.plan
        for streams in plan.decode[0]:
            self.attempt(f"decode {streams}", self.decode, streams, 0)
        for prompt in plan.prefill:
            self.attempt(f"prefill {prompt}", self.prefill, prompt)
        self.attempt("first token", self.first_token)
        if plan.score:
            self.attempt("scores", self.score)
        self.attempt("adapters", self.register)
        if plan.swaps:
            self.attempt("swap", self.swap)
        cases = [(a, s) for a, several in plan.decode.items() if a for s in several]
        # What is asked of them comes first.
        for adapters, streams in sorted(cases, key=lambda case: case not in [(1, 1), (32, 32)]):
            # The peer has as many adapters as were loaded for swaps.
            with_peer = adapters <= 1 + plan.swaps and streams != 8
            self.attempt(f"decode {streams} with {adapters}", self.decode, streams, adapters, with_peer)

    def train(self):
        """Ours while nothing else is on the GPU, then the peer's, all methods in one process."""
        own, steps = {}, 6
        rows = {length: checking.sentences(32, length, length) for _, _, length, _ in self.plan.training}
        for case in self.plan.training:
            own[case] = self.attempt(f"train {case}", self.train_ours, case, rows[case[2]], steps)
        self.before = limits.used() if limits.ON_GPU else 0
        self.attempt("start of the peer", self.start_peer)
        for case in self.plan.training:
            theirs = None
            if self.child:
                theirs = self.attempt(f"train {case} with PEFT", self.train_theirs, case, rows[case[2]], steps)
            self.add_training(case, own[case], theirs)

    def train_ours(self, case, rows, steps):
        method, layers, length, batch = case
        how = {"full": {}} if method == "full" else {
            "lora": {"rank": RANK, "alpha": 2 * RANK, "target_modules": MODULES[layers]}}
        self.server.client.upload_dataset(f"rows-{length}", texts(rows), **TEXT)
        with limits.Peak(self.before, self.server.process.pid) as peak:
            _, seconds, job = self.server.tuned("tuned", f"rows-{length}", steps=steps, batch_size=batch,
                                                max_tokens=length, learning_rate=1e-4, **how)
        succeeded(job)
        peak.bytes -= self.kv if limits.ON_GPU else 0
        return length * batch / statistics.median(seconds[1:]), peak

    def train_theirs(self, case, rows, steps):
        method, layers, length, batch = case
        with self.peer_lost(), limits.Peak(self.before, self.child.process.pid) as peak:
            answer = self.child.train(method=method, modules=MODULES[layers], rank=RANK, rows=rows, length=length,
                                      batch=batch, steps=steps)
            return length * batch / statistics.median(answer["seconds"][2:]), peak

    def add_training(self, case, ours, theirs):
        method, layers, length, batch = case
        weight_operations = 6 if method == "full" else 4
        limit = self.book.limits["operations/s"] / (weight_operations * self.weights / 2)
        title = f"LoRA {RANK} on {layers}" if method == "lora" else "full fine-tuning"
        title = f"{title}, {batch} x {length}"
        (ours, own), (theirs, other) = ((pair[0], pair[1].bytes / 2**20) if pair else (None, None)
                                        for pair in (ours, theirs))
        self.add(f"{title}, tokens/s", ours, theirs, limit)
        self.add(f"{title}: peak memory, MiB", own, other, lower=True)


def machine(options):
    """What the figures were taken with."""
    own = subprocess.run([options.program, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "peft"))
    device = torch.cuda.get_device_name() if limits.ON_GPU else f"no GPU, {os.cpu_count()} processors"
    return f"{datetime.date.today()}, {device}: {own} ({options.commit}) on {options.device}, {versions}"


def grpc(book, options, model):
    """Streams through gRPC against the engine alone, from one process without Python."""
    command = [options.engine, model, "3", f"device={options.device}"] + (["smoke"] if options.tiny else [])
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout
    book.note(told.strip())


def main():
    parser = argparse.ArgumentParser()
    for name in ("program", "device", "work", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--commit", default="", help="what the program was built of")
    parser.add_argument("--engine", help="the bench of that name, to say what gRPC costs")
    parser.add_argument("--seconds", type=float, default=300, help="what it may take")
    parser.add_argument("--models", default="", help="these shapes only, by commas")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes and few tokens: shows that everything works")
    parser.add_argument("--quick", action="store_true", help="the most asked for only")
    options = parser.parse_args()
    plans = TINY if options.tiny else QUICK if options.quick else PLANS
    book = Book(options.out, options.seconds)
    book.machine = machine(options)
    if options.tiny or not limits.ON_GPU:
        book.note("a rehearsal: the figures mean nothing")
    with book.part("limits"):
        book.limits = limits.measure()
    for name, plan in plans.items():
        if options.models and name not in options.models.split(","):
            continue
        # To write and read 7 billion weights twice takes a minute.
        if not book.has(80 if "7b" in name else 15, name):
            continue
        one = Bench(book, options, name, plan)
        try:
            with book.part(f"{name}: write"):
                one.write()
            with book.part(f"{name}: start"):
                one.start()
            if one.crowd:
                book.add(name, "start to ready, s", one.server.seconds_to_ready)
                if plan.training:
                    one.train()
                else:
                    one.attempt("start of the peer", one.start_peer)
                one.serve()
                if options.engine and name in ("smollm2-135m", "tiny") and book.has(20, "gRPC against the engine"):
                    with book.part("gRPC against the engine"):
                        grpc(book, options, one.folder)
        finally:
            one.stop()
    book.save()
    with open(f"{options.out}/figures.md") as file:
        print(file.read())
    failed = any(note.startswith("FAILED") for note in book.notes)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()

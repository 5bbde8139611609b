"""Fine-tunes on evenkeel and with transformers + PEFT in turn, same rows and recipe, and prints tables of medians and ratios.

Three parts: the optimiser step (8 rows of 128 tokens), a real task (SST-2, where --sst2 names the folder with
train.tsv and dev.tsv), and what a running job costs a stream. A ratio is evenkeel's figure over the peer's in the same
round: below 1 is better. usage: see run.sh.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time

import grpc
from evenkeel.v1 import (dataset_pb2, dataset_pb2_grpc, fine_tuning_pb2, fine_tuning_pb2_grpc, inference_pb2,
                         inference_pb2_grpc, job_pb2, job_pb2_grpc, training_pb2)

import peer

HERE = os.path.dirname(os.path.abspath(__file__))
CHUNK = 1 << 20
LABELS = [" negative", " positive"]


class Server:
    """A fresh server, so that its peak of memory is that of what it is asked here."""

    def __init__(self, binary, model, work, dtype="auto"):
        data = f"{work}/data-training"
        shutil.rmtree(data, ignore_errors=True)
        command = [binary, "serve", "--model", model, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0",
                   "--data-dir", data]
        log = open(f"{work}/training.log", "w")
        environment = os.environ | {"EVENKEEL__MODEL__DTYPE": dtype}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        ready = self.process.stdout.readline().split()
        if not ready:
            raise RuntimeError(f"the server did not start, see {work}/training.log")
        self.channel = grpc.insecure_channel(ready[1].removeprefix("grpc="))
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.jobs = job_pb2_grpc.JobServiceStub(self.channel)

    def upload(self, name, rows):
        """Uploads rows as JSON lines."""
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        keys = {"text_column": "text"} if "text" in rows[0] else {"prompt_column": "prompt",
                                                                  "completion_column": "completion"}
        declaration = dataset_pb2.DatasetDeclaration(format=dataset_pb2.DATASET_FORMAT_JSONL, **keys)
        header = dataset_pb2.UploadDatasetHeader(name=name, size=len(content), declaration=declaration,
                                                 sha256=hashlib.sha256(content).hexdigest())

        def parts():
            yield dataset_pb2.UploadDatasetRequest(header=header)
            for at in range(0, len(content), CHUNK):
                chunk = dataset_pb2.DatasetChunk(offset=at, data=content[at:at + CHUNK])
                yield dataset_pb2.UploadDatasetRequest(chunk=chunk)

        dataset_pb2_grpc.DatasetServiceStub(self.channel).UploadDataset(parts())

    def create(self, recipe, dataset):
        """Creates the job of a recipe and returns its id."""
        method = {"full": training_pb2.FullMethod()} if recipe["method"] == "full" else {
            "lora": training_pb2.LoraMethod(rank=recipe["rank"], alpha=recipe["alpha"], dora=recipe["method"] == "dora")}
        settings = training_pb2.TrainingSettings(
            task=training_pb2.TRAINING_TASK_CAUSAL_LM, steps=recipe["steps"], batch_size=8,
            max_tokens=recipe["max_tokens"], learning_rate=recipe["learning_rate"], warmup_steps=recipe["warmup"],
            **method)
        request = fine_tuning_pb2.CreateFineTuningJobRequest(adapter="tuned", dataset=dataset, settings=settings)
        return fine_tuning_pb2_grpc.FineTuningServiceStub(self.channel).CreateFineTuningJob(request).id

    def watch(self, job):
        """Waits for the end of a job; returns losses and seconds of its steps, without the first."""
        times, losses = [], []
        for event in self.jobs.WatchJob(job_pb2.WatchJobRequest(id=job)):
            if event.WhichOneof("event") == "progress":
                times.append(event.time.ToNanoseconds() / 1e9)
                losses.append(event.progress.loss)
            elif event.job.state in (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED):
                raise RuntimeError(f"the job ended: {event.job.error.reason} {event.job.error.message}")
        return losses, [b - a for a, b in zip(times, times[1:])]

    def accuracy(self, adapter, rows):
        """Share of rows whose right label is the likeliest."""
        right = 0
        for row in rows:
            candidates = [inference_pb2.Candidate(text=label) for label in LABELS]
            request = inference_pb2.ScoreRequest(adapter=adapter, prompt=row["prompt"], candidates=candidates)
            scores = [scored.sum_logprob for scored in self.inference.Score(request).candidates]
            right += LABELS[scores.index(max(scores))] == row["completion"]
        return right / max(1, len(rows))

    def gaps(self, tokens):
        """Seconds between the tokens of one greedy stream."""
        sampling = inference_pb2.SamplingParams(temperature=0, max_new_tokens=tokens, ignore_eos=True)
        request = inference_pb2.GenerateRequest(prompt="The keel of a ship", sampling=sampling)
        times = [time.perf_counter() for piece in self.inference.GenerateStream(request) if piece.token_ids]
        return [b - a for a, b in zip(times, times[1:])]

    def peak(self):
        return peer.peak_bytes(self.process.pid)

    def close(self):
        self.channel.close()
        self.process.terminate()
        self.process.wait()


def with_peft(folder, recipe):
    """Runs the peer in a process of its own."""
    command = [sys.executable, f"{HERE}/peer_training.py", folder]
    done = subprocess.run(command, input=json.dumps(recipe), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def long_rows(count, seed):
    """Rows of many more than 128 tokens, of random short words."""
    draw = random.Random(seed)
    words = "the of sea ship keel wind light winter old river stone road night small house".split()
    return [{"text": " ".join(draw.choice(words) for _ in range(300))} for _ in range(count)]


def orders(rows, steps):
    """Rows of each step for the peer: evenkeel shuffles by its own seed, which the time does not depend on."""
    draw = random.Random(0)
    order = []
    while rows and len(order) < steps:
        shuffled = draw.sample(range(rows), rows)
        order += [shuffled[at:at + 8] for at in range(0, rows, 8)]
    return order[:steps]


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def recipe(method, tokens, steps, rows=(), **other):
    """What both sides do."""
    return {"method": method, "rank": 8, "alpha": 16, "max_tokens": tokens, "learning_rate": 1e-4, "warmup": 0,
            "steps": steps, "rows": list(rows), "order": orders(len(rows), steps), "dev": [], "labels": LABELS, **other}


def step(options, method, dtype="f32", peers=("f32",)):
    """One method's step: seconds and peaks of every round, as rows of the table; the peer in its fastest precision."""
    tokens, steps = (8, 2) if options.smoke else (128, 5)
    rows = long_rows(16, 1)
    wanted = recipe(method, tokens, steps, rows)
    title = "LoRA step, rank 8, all linear" if method == "lora" else "full fine-tuning step"
    title = title if dtype == "f32" else f"{title}, {dtype} against the best of {', '.join(peers)}"
    title, memory = f"{title}, 8 x {tokens}, s", f"{title}: peak memory, MiB"

    def ours():
        server = Server(options.binary, options.folder, options.work, dtype)
        server.upload("rows", rows)
        _, seconds = server.watch(server.create(wanted, "rows"))
        peak = server.peak() / 2**20
        server.close()
        return statistics.median(seconds), peak, dtype

    def theirs():
        tried = []
        for precision in peers:
            peft = with_peft(options.folder, wanted | {"precision": precision})
            tried.append((statistics.median(peft["seconds"][1:]), peft["peak"] / 2**20, precision))
        return min(tried)

    figures = {}
    for _ in range(options.rounds):
        for name, run in [("evenkeel", ours), ("peft", theirs)]:
            for prefix in ["", peer.BUSY] if options.busy else [""]:
                with peer.spinner(bool(prefix)):
                    seconds, peak, precision = run()
                figures.setdefault(prefix + title, {}).setdefault(name, []).append(seconds)
                if not prefix:
                    figures.setdefault(memory, {}).setdefault(name, []).append(peak)
                say(f"{prefix}{method}, {name} {precision}: {seconds:.2f} s {peak:.0f} MiB")
    table = [[title, *peer.cells(values["evenkeel"], values["peft"])] for title, values in figures.items()]
    if options.busy:
        table.append([f"{title}: share of the speed that is left beside a busy process",
                      *(peer.left(figures, title, name) for name in ("evenkeel", "peft")), ""])
    return table


def read_tsv(path):
    rows = [line.rstrip("\n").rsplit("\t", 1) for line in open(path, encoding="utf-8")]
    return [{"prompt": f"Review: {text}\nSentiment:", "completion": LABELS[int(label)]} for text, label in rows]


def sst2(options):
    """The same task with both: accuracy before and after, time and memory, as rows of the table."""
    draw = random.Random(0)
    sizes = [("train", 16), ("dev", 4)] if options.smoke else [("train", 400), ("dev", 200)]
    rows, dev = (draw.sample(read_tsv(f"{options.sst2}/{name}.tsv"), count) for name, count in sizes)
    # Equal rows would be one row to the server.
    rows = list({row["prompt"]: row for row in rows}.values())
    rows = rows[:len(rows) // 8 * 8]
    steps = len(rows) // 8
    wanted = recipe("lora", 128, steps, rows, learning_rate=5e-4, warmup=min(10, steps), dev=dev)
    server = Server(options.binary, options.folder, options.work)
    server.upload("rows", rows)
    before = server.accuracy("", dev)
    losses, seconds = server.watch(server.create(wanted, "rows"))
    after, peak = server.accuracy("tuned", dev), server.peak()
    server.close()
    peft = with_peft(options.folder, wanted)
    error = (after * (1 - after) / len(dev)) ** 0.5
    title = f"SST-2, {len(rows)} rows, {steps} steps of 8"
    last = lambda values: [statistics.mean(values[-10:])]
    return [[f"{title}, s", *peer.cells([sum(seconds)], [sum(peft["seconds"][1:])])],
            [f"{title}: peak memory, MiB", *peer.cells([peak / 2**20], [peft["peak"] / 2**20])],
            [f"accuracy before, {len(dev)} rows", *peer.cells([before], [peft["before"]])],
            [f"accuracy after (standard error {error:.3f})", *peer.cells([after], [peft["after"]])],
            ["mean loss of the last 10 steps", *peer.cells(last(losses), last(peft["losses"]))]]


def latency(options):
    """Inter-token latency of one stream without and with jobs, as rows of a table of their own."""
    tokens = 12 if options.smoke else 500
    server = Server(options.binary, options.folder, options.work)
    rows = long_rows(16, 2)
    server.upload("rows", rows)
    server.gaps(16)
    found = [("alone", server.gaps(tokens))]
    for name, kind in [("a LoRA job", "lora"), ("a DoRA job", "dora"), ("a job on all weights", "full")]:
        job = server.create(recipe(kind, 8 if options.smoke else 128, 100000), "rows")
        started = threading.Event()

        def first(job=job, started=started):
            for event in server.jobs.WatchJob(job_pb2.WatchJobRequest(id=job)):
                if event.WhichOneof("event") == "progress":
                    return started.set()

        threading.Thread(target=first, daemon=True).start()
        started.wait()
        found.append((f"beside {name}", server.gaps(tokens)))
        server.jobs.CancelJob(job_pb2.CancelJobRequest(id=job))
        # The next one makes an adapter of the same name.
        for _ in server.jobs.WatchJob(job_pb2.WatchJobRequest(id=job)):
            pass
    server.close()
    table = []
    for name, gaps in found:
        cut = statistics.quantiles(gaps, n=100, method="inclusive")
        numbers = [cut[49] * 1e3, cut[98] * 1e3, max(gaps) * 1e3, len(gaps) / sum(gaps)]
        table.append([name, *(peer.number(number) for number in numbers)])
    return table


def main():
    options = argparse.ArgumentParser()
    for name in ["--binary", "--folder", "--work"]:
        options.add_argument(name, required=True)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--sst2")
    options.add_argument("--only", default="")
    options.add_argument("--smoke", action="store_true", help="a few tokens each")
    options.add_argument("--busy", action="store_true", help="steps also beside one process that computes without end")
    options = options.parse_args()
    parts = {"lora step": lambda: step(options, "lora"),
             "lora bf16 step": lambda: step(options, "lora", "bf16", ["f32 autocast to bf16", "bf16"]),
             "full step": lambda: step(options, "full")}
    if options.sst2:
        parts["sst2"] = lambda: sst2(options)
    rows = [row for name, part in parts.items() if options.only in name for row in part()]
    if options.smoke:
        print("a few tokens each: the figures mean nothing")
    if rows:
        print("\n" + peer.table(["figure", "evenkeel", "transformers + PEFT", "ratio"], rows))
    if options.only in "latency":
        head = ["inter-token latency of one greedy stream, ms", "p50", "p99", "worst", "tokens/s"]
        print("\n" + peer.table(head, latency(options)))


main()

"""Fine-tunes on evenkeel and with transformers + PEFT in turn, same rows and recipe, and prints medians and ratios.

Three parts: the optimiser step (8 rows of 128 tokens), a real task (SST-2, where --sst2 names the folder with
train.tsv and dev.tsv), and what a running job costs a stream. A ratio is evenkeel's figure over the peer's in the same
round. usage: run.sh --training [--rounds N] [--sst2 FOLDER] [--only TEXT]
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

    def __init__(self, binary, model, work):
        data = f"{work}/data-training"
        shutil.rmtree(data, ignore_errors=True)
        command = [binary, "serve", "--model", model, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0",
                   "--data-dir", data]
        log = open(f"{work}/training.log", "w")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
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
            "lora": training_pb2.LoraMethod(rank=recipe["rank"], alpha=recipe["alpha"])}
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
    while len(order) < steps:
        shuffled = draw.sample(range(rows), rows)
        order += [shuffled[at:at + 8] for at in range(0, rows, 8)]
    return order[:steps]


def step(options, method):
    """One method's step: medians of seconds and peaks."""
    rows = long_rows(16, 1)
    recipe = {"method": method, "rank": 8, "alpha": 16, "max_tokens": 128, "learning_rate": 1e-4, "warmup": 0,
              "steps": 5, "rows": rows, "order": orders(len(rows), 5), "dev": [], "labels": LABELS}
    ratios, peaks, own, other = [], [], [], []
    for _ in range(options.rounds):
        server = Server(options.binary, options.folder, options.work)
        server.upload("rows", rows)
        _, seconds = server.watch(server.create(recipe, "rows"))
        peak = server.peak()
        server.close()
        peft = with_peft(options.folder, recipe)
        own.append(statistics.median(seconds))
        other.append(statistics.median(peft["seconds"][1:]))
        ratios.append(own[-1] / other[-1])
        peaks.append(peak / peft["peak"])
        print(f"  {method}: evenkeel {own[-1]:.2f} s {peak >> 20} MiB, peft {other[-1]:.2f} s {peft['peak'] >> 20} MiB",
              flush=True)
    print(f"{method} step, 8 x 128, f32: {statistics.median(own):.2f} s against {statistics.median(other):.2f} s: "
          f"{statistics.median(ratios):.2f} of the peer's time, {statistics.median(peaks):.2f} of its peak memory")


def read_tsv(path):
    rows = [line.rstrip("\n").rsplit("\t", 1) for line in open(path, encoding="utf-8")]
    return [{"prompt": f"Review: {text}\nSentiment:", "completion": LABELS[int(label)]} for text, label in rows]


def sst2(options):
    """The same task with both: accuracy before and after."""
    draw = random.Random(0)
    rows, dev = (draw.sample(read_tsv(f"{options.sst2}/{name}.tsv"), count) for name, count in
                 [("train", 400), ("dev", 200)])
    # Equal rows would be one row to the server.
    rows = list({row["prompt"]: row for row in rows}.values())
    rows = rows[:len(rows) // 8 * 8]
    steps = len(rows) // 8
    recipe = {"method": "lora", "rank": 8, "alpha": 16, "max_tokens": 128, "learning_rate": 5e-4, "warmup": 10,
              "steps": steps, "rows": rows, "order": orders(len(rows), steps), "dev": dev, "labels": LABELS}
    server = Server(options.binary, options.folder, options.work)
    server.upload("rows", rows)
    before = server.accuracy("", dev)
    losses, seconds = server.watch(server.create(recipe, "rows"))
    after, peak = server.accuracy("tuned", dev), server.peak()
    server.close()
    peft = with_peft(options.folder, recipe)
    for name, a, b, took, memory, loss in [
            ("evenkeel", before, after, sum(seconds), peak, losses),
            ("peft", peft["before"], peft["after"], sum(peft["seconds"][1:]), peft["peak"], peft["losses"])]:
        print(f"SST-2 {name}: accuracy {before if a is None else a:.3f} -> {b:.3f} on {len(dev)} rows, {steps} steps in "
              f"{took:.0f} s, peak {memory >> 20} MiB, mean loss of the last ten steps {statistics.mean(loss[-10:]):.3f}",
              flush=True)


def latency(options):
    """Inter-token latency of one stream without and with a job."""
    server = Server(options.binary, options.folder, options.work)
    rows = long_rows(16, 2)
    server.upload("rows", rows)
    server.gaps(16)
    alone = server.gaps(300)
    recipe = {"method": "lora", "rank": 8, "alpha": 16, "max_tokens": 128, "learning_rate": 1e-4, "warmup": 0,
              "steps": 100000}
    job = server.create(recipe, "rows")
    started = threading.Event()

    def first():
        for event in server.jobs.WatchJob(job_pb2.WatchJobRequest(id=job)):
            if event.WhichOneof("event") == "progress":
                started.set()

    threading.Thread(target=first, daemon=True).start()
    started.wait()
    beside = server.gaps(300)
    server.jobs.CancelJob(job_pb2.CancelJobRequest(id=job))
    server.close()
    for name, gaps in [("alone", alone), ("beside a job", beside)]:
        cut = statistics.quantiles(gaps, n=100)
        print(f"inter-token latency {name}: p50 {cut[49] * 1e3:.1f} ms, p99 {cut[98] * 1e3:.1f} ms, "
              f"worst {max(gaps) * 1e3:.0f} ms, {len(gaps) / sum(gaps):.1f} tokens/s", flush=True)


def main():
    options = argparse.ArgumentParser()
    for name in ["--binary", "--folder", "--work"]:
        options.add_argument(name, required=True)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--sst2")
    options.add_argument("--only", default="")
    options = options.parse_args()
    parts = {"lora step": lambda: step(options, "lora"), "full step": lambda: step(options, "full"),
             "latency": lambda: latency(options)}
    if options.sst2:
        parts["sst2"] = lambda: sst2(options)
    for name, part in parts.items():
        if options.only in name:
            part()


main()

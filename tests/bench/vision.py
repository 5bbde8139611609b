"""Classifies images, fine-tunes and audits on evenkeel; speed and numbers beside transformers + PEFT in the same run.

Five parts. load: from the start of a process until it could classify. classify: 32 PNG files in one request, from bytes to labels, without and with an adapter. step: LoRA on query
and value with a trained head. Both with random weights at the real shapes of ViT-Base and Swin-v2-Large. task: a real
ViT-S/14 on Fashion-MNIST, head only, LoRA and all weights, one audit of the three, and both results read by PEFT and
transformers. scratch: a small Swin-v2 trained from nothing, a LoRA on it, an audit of both.
usage: run.sh --vision [--rounds N] [--only TEXT] [--smoke]
"""

import argparse
import base64
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

from evenkeel import Client
from evenkeel.v1 import audit_report_pb2

import peer
import vision_data
from audit import figures, finish, keep, text

HERE = os.path.dirname(os.path.abspath(__file__))
IMAGES = "TRAINING_TASK_IMAGE_CLASSIFICATION"
OVERALL, GROUP, DIFFERENCE = (audit_report_pb2.FigureScope.Value(f"FIGURE_SCOPE_{name}")
                              for name in ["OVERALL", "GROUP", "DIFFERENCE"])
# What is computed in, here and there: exact, and as fast as the processor can.
DTYPES = ["f32", "bf16"]
PRECISIONS = ["f32", "f32 autocast to bf16"]


@contextlib.contextmanager
def serve(options, dtype="f32", **images):
    """A fresh server with models of images beside a language model of next to nothing, and a client of it."""
    data = f"{options.work}/data-vision"
    shutil.rmtree(data, ignore_errors=True)
    command = [options.binary, "serve", "--model", options.language, "--listen", "127.0.0.1:0", "--http-listen",
               "127.0.0.1:0", "--data-dir", data]
    for name, folder in images.items():
        command += ["--image-model", f"{name}={folder}"]
    began = time.perf_counter()
    with open(f"{options.work}/vision.log", "w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True,
                                   env=os.environ | {"EVENKEEL__MODEL__DTYPE": dtype})
        try:
            ready = process.stdout.readline().split()
            if not ready:
                raise RuntimeError(f"the server did not start, see {options.work}/vision.log")
            seconds = time.perf_counter() - began
            with Client(ready[1].removeprefix("grpc="), timeout=600) as client:
                client.pid, client.start_seconds = process.pid, seconds
                yield client
        finally:
            process.terminate()
            process.wait()


def with_transformers(folder, **recipe):
    """Runs the peer in a process of its own."""
    command = [sys.executable, f"{HERE}/peer_vision.py", folder]
    recipe = {"precision": "f32", **recipe}
    done = subprocess.run(command, input=json.dumps(recipe), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def models(options):
    """Title and name of the models whose speed is measured."""
    return [("ViT", "vit-tiny"), ("Swin-v2", "swin-small")] if options.smoke else [
        ("ViT-Base", "vit-base"), ("Swin-v2-Large", "swin-large")]


def compared(title, unit, own, others, best):
    """Rows of a table: f32 against f32, and the best of each side, each a dictionary of figures by number format."""
    of = [best(values, key=lambda name: statistics.median(values[name])) for values in [own, others]]
    rows = [[f"{title}, {unit}", *peer.cells(own["f32"], others["f32"])]]
    if of != ["f32", "f32"]:
        rows.append([f"the same, {of[0]} against {of[1]}", *peer.cells(own[of[0]], others[of[1]])])
    return rows


def apart(own, other):
    """Largest difference of two lists of logits."""
    return max(abs(a - b) for x, y in zip(own, other, strict=True) for a, b in zip(x, y, strict=True))


def load(options):
    """Seconds until a model is ready, its file in the page cache, as rows of a table."""
    table = []
    for title, name in models(options):
        folder = vision_data.MODELS[name](options.work)
        own, others, alone = [], [], []
        for _ in range(options.rounds):
            starts, runs = [], []
            for _ in range(3):
                with serve(options, images=folder) as client:
                    starts.append(client.start_seconds)
                runs.append(with_transformers(folder, do="load", began=time.time()))
            own.append(min(starts))
            others.append(min(run["seconds"] for run in runs))
            alone.append(min(run["loading"] for run in runs))
        table += [[f"{title}, process started to ready, s", *peer.cells(own, others)],
                  ["the same against `from_pretrained` alone, s", *peer.cells(own, alone)]]
    return table


def classify(options):
    """Images a second, without and with an adapter, as rows of a table."""
    files = vision_data.pictures(4 if options.smoke else 32)
    encoded = [base64.b64encode(file).decode() for file in files]
    table = []
    for title, name in models(options):
        folder = vision_data.MODELS[name](options.work)
        adapter = vision_data.adapter(options.work, name)
        for what, using in [("", None), (", 1 adapter of rank 16 on query and value", adapter)]:
            own, peaks = {dtype: [] for dtype in DTYPES}, {dtype: [] for dtype in DTYPES}
            others, other_peaks, distance = {p: [] for p in PRECISIONS}, {p: [] for p in PRECISIONS}, 0.0
            for _ in range(options.rounds):
                for dtype in DTYPES:
                    with serve(options, dtype, images=folder) as client:
                        if using:
                            client.upload("adapter", using, base_model="images")
                        seconds = []
                        for _ in range(3):
                            began = time.perf_counter()
                            found = client.classify_images(files, adapter="adapter" if using else "",
                                                           base_model="images")
                            seconds.append(time.perf_counter() - began)
                        own[dtype].append(len(files) / min(seconds))
                        peaks[dtype].append(peer.peak_bytes(client.pid) / 2**20)
                    if dtype == "f32":
                        exact = [list(one.logits) for one in found]
                for precision in PRECISIONS:
                    # In one batch, and in smaller ones, which may suit the caches better.
                    runs = [with_transformers(folder, do="classify", files=encoded, adapter=using, repeat=3,
                                              precision=precision, batch=batch) for batch in [len(files), 8]]
                    best = min(runs, key=lambda run: min(run["seconds"]))
                    others[precision].append(len(files) / min(best["seconds"]))
                    other_peaks[precision].append(best["peak"] / 2**20)
                    if precision == "f32":
                        distance = max(distance, apart(exact, best["logits"]))
                say(f"{title}{what}: images/s", *({name: round(values[-1], 2) for name, values in side.items()}
                                                  for side in [own, others]))
            table += compared(f"{title}{what}", "images/s", own, others, max)
            table += compared(f"{title}{what}", "peak memory, MiB", peaks, other_peaks, min)
            print(f"{title}{what}: largest difference of a logit {distance:.2g}", flush=True)
    return table


def step(options):
    """One step of LoRA, 8 images: seconds and peak memory, as rows of a table."""
    steps = 3 if options.smoke else 5
    rows = vision_data.rows(options.work, 16, 0, "brightness")
    table = []
    for title, name in models(options):
        folder = vision_data.MODELS[name](options.work)
        own, peaks = {dtype: [] for dtype in DTYPES}, {dtype: [] for dtype in DTYPES}
        others, other_peaks = {p: [] for p in PRECISIONS}, {p: [] for p in PRECISIONS}
        for _ in range(options.rounds):
            for dtype in DTYPES:
                with serve(options, dtype, images=folder) as client:
                    upload(client, "rows", rows, "brightness")
                    job = tune(client, "tuned", "rows", "images", steps=steps, batch_size=8, learning_rate=1e-4,
                               lora=lora(name))
                    own[dtype].append(statistics.median(watch(client, job)[1]))
                    peaks[dtype].append(peer.peak_bytes(client.pid) / 2**20)
            for precision in PRECISIONS:
                run = with_transformers(folder, do="train", method="lora", rank=16, alpha=16, learning_rate=1e-4,
                                        rows=rows, batch=8, steps=steps, precision=precision)
                others[precision].append(statistics.median(run["seconds"][1:]))
                other_peaks[precision].append(run["peak"] / 2**20)
            say(f"{title} step, s", *({name: round(values[-1], 2) for name, values in side.items()}
                                      for side in [own, others]))
        table += compared(f"{title}, LoRA step, 8 images", "s", own, others, min)
        table += compared(f"{title}, LoRA step", "peak memory of that process, MiB", peaks, other_peaks, min)
    return table


def lora(name, rank=16):
    """The paper's LoRA for images; transformers 5 has renamed query and value of ViT."""
    names = ["q_proj", "v_proj"] if name.startswith("vit") else ["query", "value"]
    return {"rank": rank, "alpha": 16, "target_modules": names}


def upload(client, name, rows, group):
    return client.upload_dataset(name, vision_data.as_jsonl(rows), **vision_data.declaration(group))


def tune(client, adapter, dataset, base, **settings):
    return client.fine_tune(adapter, dataset, base_model=base, task=IMAGES, **settings)


def watch(client, job):
    """Waits for the end of a job; returns losses and seconds of its steps, without the first."""
    times, losses = [], []
    for event in client.watch_job(job):
        if event.HasField("progress"):
            times.append(event.time.ToNanoseconds() / 1e9)
            losses.append(event.progress.loss)
    finish(client, job)
    return losses, [b - a for a, b in zip(times, times[1:])]


def train(client, adapter, dataset, base, **settings):
    """Trains and says how it went."""
    losses, _ = watch(client, job := tune(client, adapter, dataset, base, **settings))
    _, seconds = finish(client, job)
    last = losses[-10:]
    print(f"{adapter}: {len(losses)} steps in {seconds:.0f} s, mean loss of the last {len(last)}: "
          f"{statistics.mean(last):.3f}", flush=True)


def audit(options, client, name, audited, base, group, titles):
    """Audits models on all rows of a data set of one name, keeps the page, and prints figures as a table.

    Membership is told on all rows, accuracy and calibration on rows that no model was trained on: `part` is a stratum.
    """
    job = client.audit(name, name, audited, base_model=base, task={"head": {}}, attributes=[{"values_column": group}],
                       control_columns=["part"], membership={"attacks": ["AUDIT_ATTACK_LOSS"]},
                       splits=["DATASET_SPLIT_TRAIN", "DATASET_SPLIT_TEST"])
    _, seconds = finish(client, job)
    report = client.report(name)
    print(f"\naudit of {report.data.rows} rows and {len(titles)} models in {seconds:.0f} s: "
          f"{keep(options, client, name)}\n")
    table = []
    for measure in ["accuracy", "ece_width", "log_loss", "mia_loss_auc"]:
        for scope in [OVERALL, GROUP, DIFFERENCE]:
            table += lines(report, measure, scope, len(titles))
    print(peer.table(["figure", *titles], table))
    for warning in report.warnings:
        print(f"  warning {warning.kind}: {warning.message}")
    sys.stdout.flush()


def lines(report, measure, scope, count):
    """Rows of the table: one of each group, or one; but for membership of the test rows."""
    found, stratum = {}, "" if measure.startswith("mia_") else "test"
    for model in range(count):
        for figure in figures(report, measure, scope, model, stratum=stratum):
            what = {OVERALL: "", GROUP: f", {figure.group}", DIFFERENCE: f", gap over {figure.attribute}"}[scope]
            found.setdefault(f"{measure}{what}", [""] * count)[model] = text(figure)
    return [[title, *cells] for title, cells in found.items()]


def same(options, client, name, base, folder, files):
    """Reads a downloaded result with PEFT or transformers and compares logits with those of Classify."""
    target = f"{options.work}/vision/downloaded-{name}"
    shutil.rmtree(target, ignore_errors=True)
    client.download(name, target)
    encoded = [base64.b64encode(file).decode() for file in files]
    whole = not os.path.exists(f"{target}/adapter_config.json")
    if whole and not os.path.exists(f"{target}/preprocessor_config.json"):
        print(f"{name}: its folder has no preprocessor_config.json, that of the base is taken")
        shutil.copy(f"{folder}/preprocessor_config.json", target)
    run = with_transformers(target if whole else folder, do="classify", files=encoded, repeat=1, batch=8,
                            adapter=None if whole else target)
    own = [list(one.logits) for one in client.classify_images(files, adapter=name, base_model=base)]
    distance = apart(own, run["logits"])
    print(f"{name}: {'transformers' if whole else 'PEFT'} reads the download; largest difference of a logit "
          f"{distance:.2g}", flush=True)
    if distance > 1e-3:
        raise RuntimeError(f"{name} is not the same model outside")
    return target


def right(client, rows, **which):
    """Share of rows that are classified right."""
    hits = 0
    for at in range(0, len(rows), 64):
        chosen = rows[at:at + 64]
        found = client.classify_images([base64.b64decode(row["image"]) for row in chosen], **which)
        hits += sum(one.label_name == row["label"] for one, row in zip(found, chosen, strict=True))
    return hits / len(rows)


def task(options):
    """Fashion-MNIST with a real ViT-S/14: head only, LoRA, all weights; one audit of the three."""
    train_rows, test_rows, batch = (16, 8, 4) if options.smoke else (480, 240, 16)
    name = "vit-tiny" if options.smoke else "vit-small"
    folder = vision_data.MODELS[name](options.work)
    rows = vision_data.rows(options.work, train_rows, test_rows, "brightness")
    files = [base64.b64decode(row["image"]) for row in rows[-min(32, test_rows):]]
    common = {"batch_size": batch, "warmup_steps": 3}
    with serve(options, images=folder) as client:
        upload(client, "task", rows, "brightness")
        print(f"\n{name}, Fashion-MNIST, {train_rows} rows to train on, {test_rows} to test with")
        train(client, "head", "task", "images", head_only={}, epochs=4, learning_rate=1e-2, **common)
        train(client, "lora", "task", "images", lora=lora(name), epochs=2, learning_rate=1e-3, **common)
        train(client, "full", "task", "images", full={}, epochs=2, learning_rate=5e-5, **common)
        audit(options, client, "task", ["head", "lora", "full"], "images", "brightness",
              ["head only", "LoRA", "all weights"])
        for tuned in ["lora", "full"]:
            same(options, client, tuned, "images", folder, files)


def scratch(options):
    """A small Swin-v2 from random weights, then a LoRA on it for images that are turned; an audit of both."""
    train_rows, test_rows, epochs = (128, 16, 1) if options.smoke else (6000, 1000, 6)
    folder = vision_data.swin_small(options.work)
    rows = vision_data.rows(options.work, train_rows, test_rows, "rotation", ["upright"])
    test = [row for row in rows if row["split"] == "test"]
    files = [base64.b64decode(row["image"]) for row in test[:32]]
    with serve(options, images=folder) as client:
        upload(client, "upright", rows, "rotation")
        print(f"\nsmall Swin-v2 from random weights, Fashion-MNIST, {train_rows} rows to train on")
        train(client, "swin", "upright", "images", full={}, epochs=epochs, batch_size=32, learning_rate=1e-3,
              warmup_steps=min(20, train_rows // 32), random_flip=True)
        print(f"accuracy on {test_rows} rows: {right(client, test, adapter='swin', base_model='images'):.3f}")
        trained = same(options, client, "swin", "images", folder, files)
    rows = vision_data.rows(options.work, train_rows // 3, test_rows, "rotation", seed=1)
    with serve(options, images=trained) as client:
        upload(client, "scratch", rows, "rotation")
        train(client, "turned", "scratch", "images", lora=lora("swin-small", 8), epochs=epochs, batch_size=32,
              learning_rate=2e-3, warmup_steps=5)
        audit(options, client, "scratch", ["", "turned"], "images", "rotation", ["trained from nothing", "with LoRA"])
        same(options, client, "turned", "images", trained, files)


def main():
    options = argparse.ArgumentParser()
    for name in ["--binary", "--folder", "--work"]:
        options.add_argument(name, required=True)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", default="")
    options.add_argument("--smoke", action="store_true", help="tiny models and a few rows")
    options = options.parse_args()
    if options.smoke:
        options.rounds = 1
        print("tiny models and a few rows: the figures mean nothing")
    options.language = vision_data.language(options.work, options.folder)
    for name, part in {"load": load, "classify": classify, "step": step, "task": task, "scratch": scratch}.items():
        if options.only in name and (rows := part(options)):
            print("\n" + peer.table(["figure", "evenkeel", "transformers + PEFT", "ratio"], rows), flush=True)


if __name__ == "__main__":
    main()

"""Audits real data on evenkeel and times scoring against transformers on the same items in the same run.

Four parts: scoring speed (CrowS-Pairs and HateCheck, a ratio above 1 is evenkeel's advantage), BBQ and CrowS-Pairs of
the base model, HateCheck before and after a fine-tune, and LiRA with shadow adapters.
usage: run.sh --audit [--rounds N] [--hatecheck FOLDER] [--shadows N] [--only TEXT]
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

from evenkeel import Client

import audit_data
import peer

HERE = os.path.dirname(os.path.abspath(__file__))
SUCCEEDED = 3


@contextlib.contextmanager
def serve(options):
    """A fresh server on the model folder, and a client of it."""
    data = f"{options.work}/data-audit"
    shutil.rmtree(data, ignore_errors=True)
    command = [options.binary, "serve", "--model", options.folder, "--listen", "127.0.0.1:0", "--http-listen",
               "127.0.0.1:0", "--data-dir", data]
    with open(f"{options.work}/audit.log", "w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            ready = process.stdout.readline().split()
            if not ready:
                raise RuntimeError(f"the server did not start, see {options.work}/audit.log")
            with Client(ready[1].removeprefix("grpc="), timeout=600) as client:
                client.pid = process.pid
                yield client
        finally:
            process.terminate()
            process.wait()


def upload(client, name, rows, declaration):
    content = "".join(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n" for row in rows).encode()
    return client.upload_dataset(name, content, format="DATASET_FORMAT_JSONL", **declaration)


def finish(client, job):
    """Waits for a job; returns it and the seconds that it ran."""
    done = client.finish_job(job)
    if done.state != SUCCEEDED:
        raise RuntimeError(f"the job ended: {done.error.reason} {done.error.message}")
    return done, (done.end_time.ToNanoseconds() - done.start_time.ToNanoseconds()) / 1e9


def with_transformers(folder, items):
    command = [sys.executable, f"{HERE}/peer_scoring.py", folder]
    done = subprocess.run(command, input=json.dumps({"items": items, "batch": 32}), stdout=subprocess.PIPE, text=True,
                          check=True)
    return json.loads(done.stdout.splitlines()[-1])


def figures(report, measure, scope, model=0, versus=None, stratum=""):
    """Figures of one measure, scope (its number in the proto), model and stratum, in the order of the report."""
    for figure in report.figures:
        same = figure.measure == measure and figure.scope == scope and figure.model == model and figure.control.value == stratum
        if same and (figure.versus if figure.HasField("versus") else None) == versus and not getattr(figure, "class"):
            yield figure


def text(figure):
    if not figure.HasField("value"):
        return f"{figure.reason} (n {figure.n})"
    interval = f" [{figure.interval.low:.3f}, {figure.interval.high:.3f}]" if figure.HasField("interval") else ""
    test = f" p {figure.test.p:.3g}" if figure.HasField("test") else ""
    if figure.HasField("test") and figure.test.HasField("adjusted"):
        test += f" adjusted {figure.test.adjusted:.3g}"
    return f"{figure.value:.3f}{interval}{test} (n {figure.n})"


def show(report, measures):
    """Prints overall, groups and gap of some measures for every model, and differences from the first model."""
    for measure in measures:
        for number, model in enumerate(report.models):
            for scope in [1, 2, 7]:
                for figure in figures(report, measure, scope, number):
                    what = {1: "overall", 2: figure.group or "(missing)", 7: f"gap over {figure.attribute}"}[scope]
                    print(f"  {measure} {model.name} {what}: {text(figure)}")
            for scope in [1, 7]:
                for figure in figures(report, measure, scope, number, 0):
                    print(f"  {measure} {model.name} minus {report.models[0].name}, scope {scope}: {text(figure)}")
    for warning in report.warnings:
        print(f"  warning {warning.kind}: {warning.message}")


def speed(options):
    """The same items scored by both, in turn."""
    rows, declaration, settings = audit_data.crows_pairs(options.work)
    sets = [("CrowS-Pairs", rows[:500], declaration, settings,
             [["", [row["more"], row["less"]]] for row in rows[:500]])]
    if options.hatecheck:
        rows, declaration, settings = audit_data.hatecheck(options.hatecheck)
        declaration.pop("seeded_split")
        sets.append(("HateCheck", rows[:1000], declaration, settings,
                     [[row["prompt"], [" No", " Yes"]] for row in rows[:1000]]))
    for name, rows, declaration, settings, items in sets:
        settings = dict(settings, statistics={"resamples": 0, "permutations": 0})
        ratios, own, other = [], [], []
        for _ in range(options.rounds):
            with serve(options) as client:
                # Equal rows would be one row to the server.
                upload(client, "rows", rows, declaration)
                _, seconds = finish(client, client.audit("speed", "rows", [""], **settings))
                peak = peer.peak_bytes(client.pid)
            answer = with_transformers(options.folder, items)
            own.append(seconds / len(rows) * 1000)
            other.append(answer["seconds"] / len(rows) * 1000)
            ratios.append(answer["seconds"] / seconds)
            print(f"  {name}: evenkeel {seconds:.1f} s {peak >> 20} MiB, transformers {answer['seconds']:.1f} s "
                  f"{answer['peak'] >> 20} MiB", flush=True)
        print(f"{name}, {len(rows)} items, f32: {statistics.median(own):.1f} s a thousand against "
              f"{statistics.median(other):.1f} s: {statistics.median(ratios):.2f} times transformers' speed", flush=True)


def learn_hatecheck(options, client):
    """Fine-tunes on one half of the templates of HateCheck; returns how the other half is audited."""
    rows, declaration, settings = audit_data.hatecheck(options.hatecheck)
    upload(client, "hatecheck", rows, declaration)
    job = client.fine_tune("tuned", "hatecheck", steps=60, batch_size=16, lora={"rank": 8}, learning_rate=5e-4,
                           warmup_steps=6)
    _, seconds = finish(client, job)
    print(f"HateCheck: fine-tuned in {seconds:.0f} s", flush=True)
    return settings


def benchmarks(options):
    """BBQ and CrowS-Pairs of the base model, and where there is HateCheck of what was fine-tuned on it."""
    with serve(options) as client:
        models = [""]
        if options.hatecheck:
            learn_hatecheck(options, client)
            models.append("tuned")
        for name, (rows, declaration, settings), measures in [
                ("BBQ", audit_data.bbq(options.work, 1000), ["accuracy_ambiguous", "accuracy_disambiguated",
                                                             "bias_ambiguous", "bias_disambiguated"]),
                ("CrowS-Pairs", audit_data.crows_pairs(options.work), ["stereotype_share"])]:
            upload(client, name.lower(), rows, declaration)
            _, seconds = finish(client, client.audit(name.lower(), name.lower(), models, **settings))
            print(f"{name}: {len(rows)} rows, {len(models)} models, in {seconds:.0f} s", flush=True)
            show(client.report(name.lower()), measures)
            keep(options, client, name.lower())


def hatecheck(options):
    """HateCheck before and after a fine-tune on the other half of its templates."""
    with serve(options) as client:
        begin = time.perf_counter()
        settings = learn_hatecheck(options, client)
        _, seconds = finish(client, client.audit("hatecheck", "hatecheck", ["", "tuned"], **settings))
        print(f"HateCheck: audited base and adapter in {seconds:.0f} s, all in {time.perf_counter() - begin:.0f} s")
        show(client.report("hatecheck"), ["accuracy", "selection_rate", "fpr", "ece_width_positive_class"])
        keep(options, client, "hatecheck")


def lira(options):
    """Membership inference on an adapter that learnt few rows for long, with shadows of its own method."""
    rows, declaration, settings = audit_data.hatecheck(options.hatecheck)
    declaration = dict(declaration, seeded_split={"test": 0.5, "seed": 3})
    with serve(options) as client:
        upload(client, "small", rows[::10], declaration)
        job = client.fine_tune("target", "small", epochs=4, batch_size=16, lora={"rank": 8}, learning_rate=1e-3)
        finish(client, job)
        membership = {"shadows": options.shadows}
        begin = time.perf_counter()
        job = client.audit("lira", "small", ["", "target"], membership=membership, **settings)
        done = client.finish_job(job)
        if done.state != SUCCEEDED:
            raise RuntimeError(f"the job ended: {done.error.reason} {done.error.message}")
        print(f"LiRA: {len(rows[::10])} rows, {options.shadows} shadows in {time.perf_counter() - begin:.0f} s", flush=True)
        report = client.report("lira")
        for figure in report.figures:
            if figure.measure.startswith("mia_") and figure.scope == 1 and figure.model == 1 and not figure.HasField("versus"):
                print(f"  {figure.measure}: {text(figure)}")
        for warning in report.warnings:
            print(f"  warning {warning.kind}: {warning.message}")
        keep(options, client, "lira")


def keep(options, client, name):
    """Keeps the page of a report below the work folder, and returns its path."""
    path = f"{options.work}/report-{name}.html"
    with open(path, "wb") as page:
        page.write(client.report_file(name, "html"))
    return path


def main():
    options = argparse.ArgumentParser()
    for name in ["--binary", "--folder", "--work"]:
        options.add_argument(name, required=True)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--hatecheck")
    options.add_argument("--shadows", type=int, default=16)
    options.add_argument("--only", default="")
    options = options.parse_args()
    parts = {"speed": speed, "benchmarks": benchmarks}
    if options.hatecheck:
        parts |= {"hatecheck": hatecheck, "lira": lira}
    for name, part in parts.items():
        if options.only in name:
            part(options)


if __name__ == "__main__":
    main()

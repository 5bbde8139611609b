"""A server of evenkeel with the settings of a check, and the clients that ask it.

Builds on tests/bench: the same streams, taken by several processes here, since one Python cannot read what a GPU writes.
Times are those of one clock for all processes of the machine.
"""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.request

from evenkeel import Client
from evenkeel.v1 import adapter_pb2, adapter_pb2_grpc, inference_pb2_grpc, job_pb2

import asker
import bench
import peer


# A job of a check takes less.
JOB_SECONDS = 60


class Server(bench.Evenkeel):
    """The program on free ports. `settings` are `SECTION__KEY=value`; with `keep` the data folder is taken as it is."""

    def __init__(self, program, model, folder, device, dtype="auto", adapters=None, keep=False, **settings):
        self.data, self.log = f"{folder}/data", f"{folder}/server.log"
        os.makedirs(folder, exist_ok=True)
        if not keep:
            shutil.rmtree(self.data, ignore_errors=True)
        command = [program, "serve", "--model", model, "--device", device, "--listen", "127.0.0.1:0",
                   "--http-listen", "127.0.0.1:0", "--data-dir", self.data]
        if adapters:
            command += ["--adapter-dir", adapters]
        # Checks share a device.
        settings = {"MODEL__DTYPE": dtype, "ENGINE__PREFIX_CACHE_BYTES": 0, "ENGINE__KV_CACHE_BYTES": 1 << 30} | settings
        environment = {f"EVENKEEL__{key}": str(value) for key, value in settings.items()}
        begin = time.perf_counter()
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True,
                                            env=os.environ | environment)
        ready = re.fullmatch(r"ready grpc=(\S+) http=(\S+)\n", self.process.stdout.readline())
        if not ready:
            raise RuntimeError(f"the server did not start:\n{self.tail()}")
        self.seconds_to_ready = time.perf_counter() - begin
        self.address, self.http = ready.groups()
        self.client = Client(self.address, timeout=120)
        self.channel = self.client.channel
        self.adapters = adapter_pb2_grpc.AdapterServiceStub(self.channel)
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.names = []
        self.vocab = self.client.info().base_model.vocab_size

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:
            print(f"log of the server:\n{self.tail()}", flush=True)
        self.close()

    def tail(self):
        with open(self.log) as log:
            return log.read()[-4000:]

    def close(self):
        """Asks it to end, and makes it."""
        self.client.close()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def register(self, name, directory):
        """Loads an adapter from the adapter folder."""
        adapter = self.adapters.LoadAdapter(adapter_pb2.LoadAdapterRequest(name=name, directory=directory))
        self.names.append(name)
        return adapter.generation

    def recall(self, name):
        """Brings an adapter to host memory alone: it leaves memory, and with it its slot, and is read again."""
        self.adapters.UnloadAdapter(adapter_pb2.UnloadAdapterRequest(name=name))
        self.adapters.LoadAdapter(adapter_pb2.LoadAdapterRequest(name=name))

    def metrics(self):
        """Numbers by the name of their series, labels included."""
        with urllib.request.urlopen(f"http://{self.http}/metrics") as page:
            lines = page.read().decode().splitlines()
        return {name: float(value) for name, value in (x.rsplit(" ", 1) for x in lines if not x.startswith("#"))}

    def stream(self, ids, new, adapter=""):
        """One greedy stream; returns its tokens and the generation that wrote them."""
        tokens, generation = [], ""
        for piece in self.inference.GenerateStream(asker.generation(ids, new, adapter), timeout=60):
            tokens += piece.token_ids
            generation = piece.generation or generation
        return tokens, generation

    def score(self, prompt, candidate, adapter=""):
        """Log-probabilities of a candidate's tokens."""
        return self.scores(prompt, [candidate], adapter)[0]

    def scores(self, prompt, candidates, adapter=""):
        answer = self.inference.Score(asker.scoring(prompt, candidates, adapter), timeout=60)
        return [list(scored.token_logprobs) for scored in answer.candidates]

    def tuned(self, name, dataset, **settings):
        """Fine-tunes; returns losses, seconds between the ends of steps, and the job as it ended."""
        return self.watched(self.client.fine_tune(name, dataset, **settings))

    def watched(self, job):
        times, losses = [], []
        for event in self.client.jobs.WatchJob(job_pb2.WatchJobRequest(id=job), timeout=JOB_SECONDS):
            if event.WhichOneof("event") == "progress":
                times.append(event.time.ToNanoseconds() / 1e9)
                losses.append(event.progress.loss)
        return losses, [b - a for a, b in zip(times, times[1:])], self.client.job(job)


def succeeded(job):
    if job.state != job_pb2.JOB_STATE_SUCCEEDED:
        raise RuntimeError(f"the job ended: {job.error.reason} {job.error.message}")
    return job


def texts(rows):
    """Rows as a data set of JSON lines."""
    return "".join(json.dumps({"text": text}) + "\n" for text in rows).encode()


class Crowd:
    """Processes that ask one server together (asker.py)."""

    def __init__(self, address, processes):
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "asker.py")
        self.askers = [bench.Child(script, address) for _ in range(processes)]

    def close(self):
        for asker in self.askers:
            asker.close()

    def ask(self, kind, jobs):
        """Divides jobs among the processes, which begin together; returns the time of the begin and all answers."""
        count = len(self.askers)
        asked = [(i, asker) for i, asker in enumerate(self.askers) if i < len(jobs)]
        for i, asker in asked:
            self._tell(asker, {"kind": kind, "jobs": jobs[i::count]})
        for _, asker in asked:
            asker.answer()  # prepared
        begin = time.perf_counter() + 0.02
        for _, asker in asked:
            self._tell(asker, begin)
        found = [(i, asker.answer()) for i, asker in asked]
        answers = [None] * len(jobs)
        for i, answer in found:
            if "fault" in answer:
                raise RuntimeError(answer["fault"])
            answers[i::count] = answer["answers"]
        return begin, answers

    @staticmethod
    def _tell(asker, value):
        asker.process.stdin.write(json.dumps(value) + "\n")
        asker.process.stdin.flush()

    def generate(self, streams, prompt, new, vocab, seed, names=("",)):
        """All streams begin together; the answer of peer.py's systems."""
        ids = peer.prompts(streams, prompt, vocab, seed)
        begin, times = self.ask("stream", [(own, new, names[i % len(names)]) for i, own in enumerate(ids)])
        first, end = max(own[0] for own in times), max(own[-1] for own in times)
        return {"first": first - begin, "total": end - begin, "after": sum(x > first for own in times for x in own)}

    def score(self, items):
        """Seconds for all items, `(prompt, candidates)` in ids, and their log-probabilities."""
        begin, answers = self.ask("score", items)
        return max(end for end, _ in answers) - begin, [values for _, values in answers]

"""Checks a started server with real clients; run by run.sh, which installs them.

Each `check_*` function is one check, `*_checks` yield several; a check fails by an exception and may return a remark.
Nothing here knows a model's answers: what the numbers are is the business of the golden tests.
"""

import argparse
import contextlib
import csv
import functools
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

import browser

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEADLINE = 60


def run(command, **options):
    """Runs a command; returns its exit code and its output, both streams together."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE, **options
    )
    return done.returncode, done.stdout


def must(command, **options):
    code, output = run(command, **options)
    assert code == 0, f"exit code {code}:\n{output}"
    return output


def until(what, condition):
    """Waits for something that another process does, and returns it."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        with contextlib.suppress(OSError, KeyError, IndexError):
            if found := condition():
                return found
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {DEADLINE} s")


class Server:
    """The program on free ports, with a golden model, two golden adapters and an empty data folder."""

    def __init__(self, program, golden, folder, listen="127.0.0.1:0"):
        self.program, self.golden, self.folder = program, golden, folder
        self.model, (self.poet, second) = pick(golden)
        adapters = folder / "adapters"
        for name, source in (("poet", self.poet), ("second", second)):
            (adapters / name).mkdir(parents=True, exist_ok=True)
            for file in ("adapter_config.json", "adapter_model.safetensors"):
                shutil.copyfile(source / file, adapters / name / file)
        command = [program, "serve", "--model", self.model, "--listen", listen, "--http-listen", "127.0.0.1:0"]
        command += ["--data-dir", folder / "data", "--adapter-dir", adapters]
        images, picture = pick_images(golden)
        shutil.copyfile(picture, folder / "picture.png")
        command += ["--image-model", f"faces={images}"]
        self.log = open(folder / "log", "a")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        ready = re.fullmatch(r"ready grpc=(\S+) http=(\S+)\n", self.process.stdout.readline())
        assert ready, f"the server did not start:\n{(folder / 'log').read_text()}"
        self.grpc, self.http = ready.groups()

    def stop(self):
        """Asks it to end; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def pick(golden):
    """A golden language model with a chat template, and two adapters for it: the first that fit."""
    for model in sorted((golden / "language").iterdir()):
        config = model / "tokenizer_config.json"
        if not config.is_file() or "chat_template" not in json.loads(config.read_text()):
            continue
        adapters = []
        for adapter in sorted((golden / "adapters").iterdir()):
            if not (adapter / "adapter_config.json").is_file():
                continue
            settings = json.loads((adapter / "adapter_config.json").read_text())
            if settings.get("base_model_name_or_path") == model.name and settings.get("task_type") == "CAUSAL_LM":
                adapters.append(adapter)
        if len(adapters) >= 2:
            return model, adapters[:2]
    raise AssertionError(f"no language model with two adapters under {golden}")


def pick_images(golden):
    """A golden classifier of images, and a picture."""
    models = [folder for folder in sorted((golden / "vision").iterdir()) if (folder / "config.json").is_file()]
    return models[0], sorted((golden / "vision" / "preprocessing").glob("*.png"))[0]


# --- protos ---------------------------------------------------------------------------------------------------------


def check_buf_lint(_):
    must(["buf", "lint"], cwd=ROOT / "proto")


def check_buf_format(_):
    must(["buf", "format", "--diff", "--exit-code"], cwd=ROOT / "proto")


# --- README ---------------------------------------------------------------------------------------------------------

EXAMPLE = re.compile(r"<!-- example (fails, )?expects: (.+?) -->\n```sh\n(.*?)```", re.S)


def examples():
    return EXAMPLE.findall((ROOT / "README.md").read_text())


def readme_checks():
    """One check an example, in the order of the page: later ones use what earlier ones made."""
    for number, (fails, expected, script) in enumerate(examples(), 1):

        def check(server, fails=fails, expected=expected, script=script):
            script = script.replace("127.0.0.1:50051", server.grpc).replace("127.0.0.1:9090", server.http)
            code, output = run(["bash", "-euo", "pipefail", "-c", script], cwd=server.folder)
            assert (code != 0) == bool(fails), f"exit code {code}:\n{output}"
            assert expected in output, f"no `{expected}` in:\n{output}"

        yield f"readme_{number} ({expected.strip()})", check


def check_readme_shows_every_method(_):
    shown = "\n".join(script for _, _, script in examples())
    missing = []
    for path in sorted((ROOT / "proto").rglob("*.proto")):
        service = None
        for line in path.read_text().splitlines():
            if found := re.match(r"service (\w+)", line):
                service = found[1]
            if (found := re.match(r"\s+rpc (\w+)", line)) and f"{service}/{found[1]}" not in shown:
                missing.append(f"{service}/{found[1]}")
    assert not missing, missing


# --- grpcurl and buf ------------------------------------------------------------------------------------------------

SERVICES = (
    "ServerService",
    "InferenceService",
    "AdapterService",
    "DatasetService",
    "FineTuningService",
    "JobService",
)


def check_grpcurl_lists_services(server):
    listed = must(["grpcurl", "-plaintext", server.grpc, "list"]).split()
    for name in SERVICES:
        assert f"evenkeel.v1.{name}" in listed, listed
    assert "grpc.health.v1.Health" in listed, listed


def check_grpcurl_shows_error_details(server):
    code, output = run(
        ["grpcurl", "-plaintext", "-d", '{"name": "no-such-adapter"}', server.grpc, "evenkeel.v1.AdapterService/GetAdapter"]
    )
    assert code != 0 and "NotFound" in output, output
    assert '"reason":"ADAPTER_NOT_FOUND"' in output and "google.rpc.ErrorInfo" in output, output
    assert "not recognized" not in output, output


def check_buf_curl_lists_methods(server):
    output = must(
        ["buf", "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--list-methods", f"http://{server.grpc}"]
    )
    assert "evenkeel.v1.InferenceService/GenerateStream" in output, output


# --- Prometheus -----------------------------------------------------------------------------------------------------


def page(server, path):
    with urllib.request.urlopen(f"http://{server.http}{path}", timeout=DEADLINE) as answer:
        return answer.headers["content-type"], answer.read().decode()


def check_promtool_is_content(server):
    kind, text = page(server, "/metrics")
    assert kind.startswith("text/plain; version=0.0.4"), kind
    output = must(["promtool", "check", "metrics"], input=text)
    assert output == "", output


def check_prometheus_scrapes(server):
    generate(server, max_new_tokens=5)
    shown = re.search(r"^evenkeel_generation_tokens_total\{.*\} (\d+)$", page(server, "/metrics")[1], re.M)
    assert shown and int(shown[1]) >= 5, shown
    folder = server.folder / "prometheus"
    folder.mkdir()
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 200ms}\n"
        f"scrape_configs: [{{job_name: evenkeel, static_configs: [{{targets: ['{server.http}']}}]}}]\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address={address}", "--log.level=warn"]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:

        def value(query):
            with urllib.request.urlopen(f"http://{address}/api/v1/query?query={query}", timeout=DEADLINE) as answer:
                return json.load(answer)["data"]["result"][0]["value"][1]

        counted = until("a scrape", lambda: value("sum(evenkeel_generation_tokens_total)"))
        assert int(counted) >= int(shown[1]), f"{counted} < {shown[1]}"
        assert value("up") == "1"
        assert value("evenkeel_build_info") == "1"
    finally:
        process.terminate()
        process.wait(DEADLINE)


# --- Python ---------------------------------------------------------------------------------------------------------


@functools.cache
def messages():
    """The generated code of the Python client."""
    sys.path.insert(0, str(ROOT / "clients/python"))
    from evenkeel.v1 import adapter_pb2, adapter_pb2_grpc, inference_pb2, inference_pb2_grpc

    return inference_pb2, inference_pb2_grpc, adapter_pb2, adapter_pb2_grpc


@functools.cache
def channel(server):
    return grpc.insecure_channel(server.grpc)


def inference(server):
    return messages()[1].InferenceServiceStub(channel(server))


def request(**sampling):
    pb = messages()[0]
    return pb.GenerateRequest(prompt="The keel of a ship", sampling=pb.SamplingParams(ignore_eos=True, **sampling))


def generate(server, **sampling):
    return inference(server).Generate(request(**sampling), timeout=DEADLINE)


def fails(call):
    """Returns the error of a call."""
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call went well")


def check_python_stream_equals_the_whole(server):
    whole = generate(server, max_new_tokens=12, temperature=0)
    pieces = list(inference(server).GenerateStream(request(max_new_tokens=12, temperature=0), timeout=DEADLINE))
    assert len(pieces) > 1, "one piece is no stream"
    assert "".join(p.text for p in pieces) == whole.choices[0].text
    assert [i for p in pieces for i in p.token_ids] == list(whole.choices[0].token_ids)
    assert whole.usage.completion_tokens == 12 == pieces[-1].usage.completion_tokens


def check_python_deadline(server):
    # As long as the model allows: it cannot be done in a millisecond.
    error = fails(lambda: list(inference(server).GenerateStream(request(max_new_tokens=200), timeout=0.001)))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error


def check_python_cancel(server):
    stream = inference(server).GenerateStream(request(max_new_tokens=200), timeout=DEADLINE)
    next(stream)
    stream.cancel()
    assert fails(lambda: list(stream)).code() == grpc.StatusCode.CANCELLED
    running = re.compile(r"^evenkeel_num_requests_running\{.*\} 0$", re.M)
    until("the place is free again", lambda: running.search(page(server, "/metrics")[1]))


def check_python_error_details(server):
    error = fails(lambda: generate(server, max_new_tokens=0, temperature=9))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in rpc_status.from_call(error).details:
        for message in (info, bad):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    assert info.reason == "INVALID_FIELD", info
    fields = {violation.field for violation in bad.field_violations}
    assert {"sampling.max_new_tokens", "sampling.temperature"} <= fields, fields


def check_python_health(server):
    answer = health_pb2_grpc.HealthStub(channel(server)).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def check_python_reflection(server):
    names = ProtoReflectionDescriptorDatabase(channel(server)).get_services()
    assert {f"evenkeel.v1.{name}" for name in SERVICES} <= set(names), names


def check_python_upload(server):
    _, _, pb, pb_grpc = messages()
    stub = pb_grpc.AdapterServiceStub(channel(server))
    files = {f: (server.poet / f).read_bytes() for f in ("adapter_config.json", "adapter_model.safetensors")}

    def parts(digest):
        infos = [pb.FileInfo(name=name, size=len(data), sha256=digest(data)) for name, data in files.items()]
        yield pb.UploadAdapterRequest(header=pb.UploadAdapterHeader(name="python", files=infos))
        for name, data in files.items():
            for at in range(0, len(data), 1000):
                chunk = pb.FileChunk(name=name, offset=at, data=data[at : at + 1000])
                yield pb.UploadAdapterRequest(chunk=chunk)

    wrong = fails(lambda: stub.UploadAdapter(parts(lambda _: "0" * 64), timeout=DEADLINE))
    assert wrong.code() == grpc.StatusCode.INVALID_ARGUMENT, wrong
    adapter = stub.UploadAdapter(parts(lambda data: hashlib.sha256(data).hexdigest()), timeout=DEADLINE)
    sent = request(max_new_tokens=4, temperature=0)
    sent.adapter = "python"
    assert inference(server).Generate(sent, timeout=DEADLINE).generation == adapter.generation
    back = {}
    for part in stub.DownloadAdapter(pb.DownloadAdapterRequest(name="python"), timeout=DEADLINE):
        if part.WhichOneof("part") == "chunk":
            back[part.chunk.name] = back.get(part.chunk.name, b"") + part.chunk.data
    assert back == files, {name: len(data) for name, data in back.items()}


def check_client_code_is_up_to_date(_):
    must([ROOT / "clients/python/make.sh", "--check"])


def check_client(server):
    messages()
    from evenkeel import Client, EvenkeelError

    with Client(server.grpc) as client, tempfile.TemporaryDirectory() as folder:
        assert client.info().base_model.vocab_size > 0
        adapter = client.upload("client", server.poet, expected_generation="", request_id="once")
        again = client.upload("client", server.poet, expected_generation="", request_id="once")
        assert adapter.generation == again.generation
        assert client.set_alias("client-live", "client", expected_generation="").generation == adapter.generation
        sampling = dict(adapter="client-live", max_new_tokens=12, temperature=0, ignore_eos=True)
        (whole,) = client.generate("The keel of a ship", **sampling)
        assert (whole.generation, len(whole.token_ids), whole.finish_reason) == (adapter.generation, 12, "length"), whole
        assert "".join(client.stream("The keel of a ship", **sampling)), "no text"
        first, second = client.score("The keel", [" of a ship", " of an adapter"], adapter="client-live")
        assert first.sum_logprob < 0 and second.sum_logprob < 0 and first.token_count == len(first.token_logprobs)
        client.download("client-live", folder)
        for file in pathlib.Path(folder).iterdir():
            assert file.read_bytes() == (server.poet / file.name).read_bytes(), file.name
        assert "client" in [a.name for a in client.list_adapters()]
        for call, reason in (
            (lambda: client.generate("x", temperature=9, top_p=0), "INVALID_FIELD"),
            (lambda: list(client.stream("x", adapter="nobody")), "ADAPTER_NOT_FOUND"),
            (lambda: client.delete_adapter("client"), "ADAPTER_IN_USE"),
            (lambda: client.upload("client", server.poet, expected_generation="", request_id="other"), "GENERATION_MISMATCH"),
        ):
            try:
                call()
            except EvenkeelError as error:
                assert error.reason == reason, (error.reason, reason)
            else:
                raise AssertionError(f"no {reason}")


def check_client_data_sets_and_jobs(server):
    messages()
    from evenkeel import Client, EvenkeelError

    with Client(server.grpc) as client:
        path = server.folder / "ships.csv"
        path.write_text("text,label\nso good,pos\nso bad,neg\n")
        columns = {"text_column": "text", "label_column": "label"}
        first = client.upload_dataset("ships-csv", path, **columns)
        assert client.upload_dataset("ships-csv", path.read_bytes(), **columns).id == first.id and first.rows == 2
        job = client.fine_tune("slow", "ships-csv", steps=100000, request_id="one")
        assert client.fine_tune("slow", "ships-csv", steps=100000, request_id="one") == job
        client.cancel_job(job)
        assert client.finish_job(job).state == 5
        for call, reason in (
            (lambda: client.upload_dataset("bad", b"text,label\na,b\nc,", **columns), "DATASET_INVALID"),
            (lambda: client.fine_tune("x", "no-such-set"), "DATASET_NOT_FOUND"),
            (lambda: client.fine_tune("x", "ships-csv", lora={"rank": 10**6}), "INVALID_FIELD"),
            (lambda: next(client.watch_job(job, "no-token")), "WATCH_TOKEN"),
            (lambda: client.cancel_job(job), "JOB_FINISHED"),
        ):
            try:
                call()
            except EvenkeelError as error:
                assert error.reason == reason, (error.reason, reason)
            else:
                raise AssertionError(f"no {reason}")


def check_client_watches_over_a_kill(server):
    """The stream breaks with the server; the next server on the same address goes on with the job and the stream."""
    messages()
    from evenkeel import Client

    folder = server.folder / "killed"
    folder.mkdir()
    other, steps, killed = Server(server.program, server.golden, folder), [], False
    try:
        with Client(other.grpc, timeout=DEADLINE) as client:
            upload_ships(client)
            job = client.fine_tune("survivor", "ships", steps=150, batch_size=4)
            for event in client.watch_job(job):
                if event.WhichOneof("event") == "progress":
                    steps.append(event.progress.step)
                if len(steps) == 5 and not killed:
                    other.process.kill()
                    other.process.wait(DEADLINE)
                    other.log.close()
                    killed, other = True, Server(server.program, server.golden, folder, listen=other.grpc)
            assert killed and client.job(job).state == 3, client.job(job)
            assert steps == list(range(1, 151)), steps
    finally:
        other.process.kill()
        other.log.close()


def check_drain_and_second_signal(server):
    """An upload that never ends keeps the server draining; a second signal does not wait for it."""
    _, _, pb, pb_grpc = messages()
    folder = server.folder / "another"
    folder.mkdir()
    other = Server(server.program, server.golden, folder)
    finish = threading.Event()
    try:

        def parts():
            files = [pb.FileInfo(name=name, size=1) for name in ("adapter_config.json", "adapter_model.safetensors")]
            yield pb.UploadAdapterRequest(header=pb.UploadAdapterHeader(name="endless", files=files))
            finish.wait(DEADLINE)

        begun = re.compile(r"^grpc_server_started_total\{.*UploadAdapter.*\} 1$", re.M)
        with grpc.insecure_channel(other.grpc) as line:
            call = pb_grpc.AdapterServiceStub(line).UploadAdapter.future(parts(), timeout=DEADLINE)
            until("the upload begins", lambda: begun.search(page(other, "/metrics")[1]))
            other.process.send_signal(signal.SIGTERM)

            def draining():
                try:
                    page(other, "/readyz")
                except urllib.error.HTTPError as error:
                    return error.code == 503
                return False

            until("/readyz says 503", draining)
            assert other.process.poll() is None, "it did not wait for the upload"
            other.process.send_signal(signal.SIGTERM)
            assert other.process.wait(DEADLINE) == 128 + signal.SIGTERM
            finish.set()
            call.cancel()
    finally:
        finish.set()
        if other.process.poll() is None:
            other.process.kill()
        other.log.close()


# --- what the server trains, in the hands of peft and transformers ---------------------------------------------------

PEFT = os.environ.get("EVENKEEL_PEFT_PYTHON")
TOLERANCE = 1e-3
# Rows with a rule to find: the word at the end follows the one in the middle.
SHIPS = [
    {"text": f"The keel of ship {i} is {'long and even' if i % 2 else 'short and odd'}", "label": "even" if i % 2 else "odd",
     "dialect": "north" if i % 3 else "south"}
    for i in range(24)
]  # fmt: skip
LORA = {"rank": 4, "alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]}
CLASSIFY = "TRAINING_TASK_SEQUENCE_CLASSIFICATION"


def upload_ships(client):
    rows = "".join(json.dumps(row) + "\n" for row in SHIPS).encode()
    return client.upload_dataset("ships", rows, text_column="text", label_column="label", group_columns=["dialect"])


def train(client, name, **settings):
    """Trains for a few steps on the ships, and returns the job."""
    upload_ships(client)
    job = client.fine_tune(name, "ships", steps=8, batch_size=4, groups=["dialect"], **settings)
    events = list(client.watch_job(job))
    steps = [event.progress for event in events if event.WhichOneof("event") == "progress"]
    done = client.job(job)
    assert events[-1].job.state == done.state == 3 and not done.error.reason, done
    assert [step.step for step in steps] == list(range(1, 9)), steps
    assert list(client.watch_job(job, events[3].token)) == events[4:], "a token does not continue after its event"
    # Adam's steps and other rows: not every step is below the one before, but the end is below the beginning.
    assert steps[-1].loss < steps[0].loss, [step.loss for step in steps]
    return done


def log_softmax(row):
    top = max(row)
    total = top + math.log(sum(math.exp(value - top) for value in row))
    return [value - total for value in row]


def outside_checks():
    """One check a kind of result: what peft and transformers compute with the download is what the server computes."""
    kinds = (
        ("lora", False, {"lora": LORA, "learning_rate": 1e-2}),
        ("dora_rslora", False, {"lora": {"rank": 4, "rslora": True, "dora": True, "layers": [0, 2]}, "learning_rate": 1e-2}),
        ("full", False, {"full": {}, "learning_rate": 1e-3}),
        ("classifier", True, {"task": CLASSIFY, "lora": LORA, "learning_rate": 1e-2}),
        ("full_classifier", True, {"task": CLASSIFY, "full": {}, "learning_rate": 1e-3}),
        ("head_only", True, {"task": CLASSIFY, "head_only": {}, "learning_rate": 1e-2}),
    )
    for name, classifier, settings in kinds:

        def check(server, name=name.replace("_", "-"), classifier=classifier, settings=settings):
            messages()
            from evenkeel import Client

            with Client(server.grpc) as client, tempfile.TemporaryDirectory() as folder:
                generation = train(client, name, **settings).result.generation
                client.download(f"{name}@{generation}", folder)
                if not PEFT:
                    return "trained and downloaded; not compared: EVENKEEL_PEFT_PYTHON names no Python with peft"
                pb, stub = messages()[0], client.inference
                asked = [pb.TokenizeRequest(text=row["text"]) for row in SHIPS[:3]]
                sequences = [list(stub.Tokenize(request, timeout=DEADLINE).ids) for request in asked]
                asked = {"base": str(server.model), "folder": folder, "classifier": "texts" if classifier else None, "sequences": sequences}
                command = [PEFT, ROOT / "tests/tools/with_peft.py"]
                done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=300)
                assert done.returncode == 0, done.stderr[-2000:]
                expected = json.loads(done.stdout)
                if classifier:
                    inputs = [pb.ClassifyInput(prompt_token_ids=pb.TokenIds(ids=ids)) for ids in sequences]
                    found = stub.Classify(pb.ClassifyRequest(adapter=name, inputs=inputs), timeout=DEADLINE)
                    got = [list(one.logits) for one in found.classifications]
                else:
                    got = []
                    for ids in sequences:
                        first, rest = pb.TokenIds(ids=ids[:1]), pb.Candidate(token_ids=pb.TokenIds(ids=ids[1:]))
                        request = pb.ScoreRequest(adapter=name, prompt_token_ids=first, candidates=[rest])
                        got.append(list(stub.Score(request, timeout=DEADLINE).candidates[0].token_logprobs))
                    expected = [
                        [log_softmax(row)[following] for row, following in zip(rows, ids[1:])]
                        for rows, ids in zip(expected, sequences)
                    ]
                values = [(a, b) for one, other in zip(got, expected, strict=True) for a, b in zip(one, other, strict=True)]
                worst = max(abs(a - b) for a, b in values)
                assert worst <= TOLERANCE, f"differs by {worst}"
                return f"{len(values)} values, largest difference {worst:.1e}"

        yield f"outside_{name}", check


# --- audits, through the Python client -----------------------------------------------------------------------------------


def check_client_audits(server):
    """A trained adapter and the base model on the same rows; files of the report agree with its figures."""
    messages()
    from evenkeel import Client, EvenkeelError

    with Client(server.grpc) as client:
        train(client, "audited", lora=LORA, learning_rate=1e-2)
        settings = {
            "task": {"label_words": {"words": [" even", " odd"]}},
            "attributes": [{"values_column": "dialect"}],
            "allow_training_overlap": True,
            "statistics": {"min_group": 4},
        }
        done = client.finish_job(client.audit("ships", "ships", ["", "audited"], **settings))
        assert done.state == 3, done.error
        report = client.report("ships")
        assert report.id == done.result.report and len(report.models) == 2, report.models
        assert report.models[1].overlap == len(SHIPS), report.models[1]
        document = client.report_file("ships", "json")
        assert hashlib.sha256(document).hexdigest() == report.id
        figures = json.loads(document)["figures"]
        rows = list(csv.DictReader(client.report_file("ships", "csv").decode().splitlines()))
        assert len(figures) == len(report.figures) == len(rows), (len(figures), len(report.figures), len(rows))
        assert client.report_file("ships", "markdown").decode().startswith("# ")
        kind, served = page(server, f"/reports/{report.id}")
        assert kind.startswith("text/html") and served.encode() == client.report_file("ships", "html")
        assert served.startswith("<!DOCTYPE html>") and "://" not in served, "a report is to stand alone"
        looked = browser.look(f"http://{server.http}/reports/{report.id}")
        again = client.finish_job(client.audit("again", "ships", ["", "audited"], **settings))
        assert again.result.report == report.id, "the same audit made another report"
        try:
            client.audit("refused", "ships", [{"adapter": "nobody"}], **settings)
            raise AssertionError("an adapter that is not there was audited")
        except EvenkeelError as error:
            assert error.reason == "ADAPTER_NOT_FOUND", error.reason
        return f"{len(figures)} figures, {looked}"


# --- bundled data ---------------------------------------------------------------------------------------------------


def check_demo_reviews_are_what_their_script_writes(_):
    must([sys.executable, str(ROOT / "src/demo/reviews/make_reviews.py"), "--check"])


# --- the end --------------------------------------------------------------------------------------------------------


def check_sigterm_ends_with_0(server):
    channel(server).close()
    code = server.stop()
    assert code == 0, code


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--golden", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    checks = [(name.removeprefix("check_"), f) for name, f in globals().items() if name.startswith("check_")]
    last = checks.pop()
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="evenkeel-tools-") as folder:
        server = Server(arguments.program, arguments.golden, pathlib.Path(folder))
        try:
            for name, check in [*readme_checks(), *outside_checks(), *checks, last]:
                try:
                    note = check(server)
                    passed += 1
                    print(f"ok      {name}{f': {note}' if note else ''}", flush=True)
                except Exception as fault:  # one check must not hide the others
                    failed += 1
                    print(f"FAILED  {name}: {type(fault).__name__}: {fault}", flush=True)
        finally:
            if server.process.poll() is None:
                server.process.kill()
            server.log.close()
            if failed:
                print(f"log of the server:\n{(server.folder / 'log').read_text()[-4000:]}")
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

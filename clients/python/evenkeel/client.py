"""A thin client: plain arguments in, plain values out, one exception for every refusal.

It hides messages and streams, and nothing else: names and defaults are the server's (proto/evenkeel/v1), and the
generated stubs stay within reach (`client.inference`, `client.adapters`, `client.jobs`, …). Retries are the caller's
business, but for `watch_job`; every changing call carries a `request_id`, so that repeating it with the same one is
harmless.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from .v1 import adapter_pb2, adapter_pb2_grpc, audit_pb2, audit_pb2_grpc, audit_report_pb2, audit_settings_pb2
from .v1 import dataset_pb2, dataset_pb2_grpc, fine_tuning_pb2, fine_tuning_pb2_grpc
from .v1 import inference_pb2, inference_pb2_grpc, job_pb2, job_pb2_grpc, server_pb2, server_pb2_grpc, training_pb2

CHUNK = 2 << 20
PEFT = ("adapter_config.json", "adapter_model.safetensors")
FULL = ("config.json", "model.safetensors")
Messages = Sequence[dict[str, str]]


# Largest answer in bytes.
MAX_MESSAGE = 256 << 20


class EvenkeelError(Exception):
    """The server refused: `code`, `reason` as the proto names it, faulty fields, seconds to wait, id for the log."""

    def __init__(self, error: grpc.RpcError):
        super().__init__(error.details())
        self.code: grpc.StatusCode = error.code()
        self.reason = ""
        self.violations: dict[str, str] = {}
        self.retry_after: float | None = None
        self.request_id = ""
        status = rpc_status.from_call(error)
        for detail in status.details if status else ():
            for kind, take in _DETAILS.items():
                if detail.Is(kind.DESCRIPTOR):
                    message = kind()
                    detail.Unpack(message)
                    take(self, message)


def _violations(error, message):
    error.violations = {v.field: v.description for v in message.field_violations}


_DETAILS = {
    error_details_pb2.ErrorInfo: lambda error, m: setattr(error, "reason", m.reason),
    error_details_pb2.BadRequest: _violations,
    error_details_pb2.RetryInfo: lambda error, m: setattr(error, "retry_after", m.retry_delay.ToMilliseconds() / 1e3),
    error_details_pb2.RequestInfo: lambda error, m: setattr(error, "request_id", m.request_id),
}


def _typed(method):
    """Turns gRPC's errors into ours."""

    @functools.wraps(method)
    def call(*args, **kwargs):
        try:
            return method(*args, **kwargs)
        except grpc.RpcError as error:
            raise EvenkeelError(error) from error

    return call


@dataclass(frozen=True)
class Completion:
    """One completion. `generation` is the SHA-256 of the adapter that wrote it, empty for the base model."""

    text: str
    token_ids: list[int]
    finish_reason: str
    generation: str
    seed: int


class Client:
    """A connection to one server; a context manager. `timeout` is the deadline of a call in seconds."""

    def __init__(self, target: str, *, timeout: float = 60, credentials: grpc.ChannelCredentials | None = None):
        # Reports of large audits are longer than the 4 MiB that gRPC takes by default.
        options = [("grpc.max_receive_message_length", MAX_MESSAGE)]
        self.channel = (grpc.secure_channel(target, credentials, options) if credentials
                        else grpc.insecure_channel(target, options))
        self.timeout = timeout
        self.server = server_pb2_grpc.ServerServiceStub(self.channel)
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.adapters = adapter_pb2_grpc.AdapterServiceStub(self.channel)
        self.datasets = dataset_pb2_grpc.DatasetServiceStub(self.channel)
        self.fine_tuning = fine_tuning_pb2_grpc.FineTuningServiceStub(self.channel)
        self.jobs = job_pb2_grpc.JobServiceStub(self.channel)
        self.audits = audit_pb2_grpc.AuditServiceStub(self.channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; running streams are cancelled."""
        self.channel.close()

    @_typed
    def info(self) -> server_pb2.ServerInfo:
        """What is running, and its limits."""
        return self.server.GetServerInfo(server_pb2.GetServerInfoRequest(), timeout=self.timeout)

    @_typed
    def generate(self, prompt: str | Messages, *, adapter: str = "", n: int = 1, **sampling) -> list[Completion]:
        """Completes a text or a conversation (`[{"role": …, "content": …}]`); `sampling` as in SamplingParams."""
        request = inference_pb2.GenerateRequest(
            adapter=adapter, n=n, sampling=inference_pb2.SamplingParams(**sampling), **_prompt(prompt)
        )
        answer = self.inference.Generate(request, timeout=self.timeout)
        name = inference_pb2.FinishReason.Name
        return [
            Completion(c.text, list(c.token_ids), name(c.finish_reason).removeprefix("FINISH_REASON_").lower(),
                       answer.generation, answer.seed)
            for c in answer.choices
        ]

    def stream(self, prompt: str | Messages, *, adapter: str = "", **sampling) -> Iterator[str]:
        """Yields the text as it comes; closing the iterator cancels the request."""
        request = inference_pb2.GenerateRequest(
            adapter=adapter, sampling=inference_pb2.SamplingParams(**sampling), **_prompt(prompt)
        )
        pieces = self.inference.GenerateStream(request, timeout=self.timeout)
        try:
            for piece in pieces:
                if piece.text:
                    yield piece.text
        except grpc.RpcError as error:
            raise EvenkeelError(error) from error
        finally:
            pieces.cancel()

    @_typed
    def score(
        self, prompt: str | Messages, candidates: Iterable[str], *, adapter: str = ""
    ) -> list[inference_pb2.CandidateScore]:
        """Log-probabilities of each candidate as the continuation of the prompt."""
        texts = [inference_pb2.Candidate(text=text) for text in candidates]
        request = inference_pb2.ScoreRequest(adapter=adapter, candidates=texts, **_prompt(prompt))
        return list(self.inference.Score(request, timeout=self.timeout).candidates)

    @_typed
    def classify(self, prompts: Iterable[str | Messages], *, adapter: str = "") -> list[inference_pb2.Classification]:
        """Labels of texts or conversations, with probabilities in the order of the labels."""
        inputs = [inference_pb2.ClassifyInput(**_prompt(prompt)) for prompt in prompts]
        request = inference_pb2.ClassifyRequest(adapter=adapter, inputs=inputs)
        return list(self.inference.Classify(request, timeout=self.timeout).classifications)

    @_typed
    def classify_images(
        self, images: Iterable[bytes], *, adapter: str = "", base_model: str = ""
    ) -> list[inference_pb2.Classification]:
        """Labels of images, given as the bytes of JPEG, PNG or WebP files, with probabilities in the order of the labels."""
        inputs = [inference_pb2.ClassifyInput(image=image) for image in images]
        request = inference_pb2.ClassifyRequest(adapter=adapter, inputs=inputs, base_model=base_model)
        return list(self.inference.Classify(request, timeout=self.timeout).classifications)

    @_typed
    def classify_rows(
        self,
        dataset: str,
        numbers: Iterable[int] | range,
        *,
        adapter: str = "",
        base_model: str = "",
    ) -> list[inference_pb2.Classification]:
        """Labels of rows of a data set, texts or images, by their numbers from 1; each says its `row`."""
        rows = inference_pb2.DatasetRows(dataset=dataset, numbers=numbers)
        request = inference_pb2.ClassifyRequest(adapter=adapter, rows=rows, base_model=base_model)
        return list(self.inference.Classify(request, timeout=self.timeout).classifications)

    @_typed
    def upload(self, name: str, folder: str | os.PathLike, *, request_id: str | None = None, **header):
        """Publishes a PEFT folder, or one with a whole model, under a name; `header` as in UploadAdapterHeader."""
        is_peft = os.path.exists(os.path.join(folder, PEFT[0]))
        paths = {file: os.path.join(folder, file) for file in (PEFT if is_peft else FULL)}
        files = [adapter_pb2.FileInfo(name=f, size=os.path.getsize(p), sha256=_digest(p)) for f, p in paths.items()]
        first = adapter_pb2.UploadAdapterHeader(name=name, files=files, request_id=_id(request_id), **header)

        def parts():
            yield adapter_pb2.UploadAdapterRequest(header=first)
            for file, path in paths.items():
                offset = 0
                with open(path, "rb") as source:
                    while data := source.read(CHUNK):
                        chunk = adapter_pb2.FileChunk(name=file, offset=offset, data=data)
                        yield adapter_pb2.UploadAdapterRequest(chunk=chunk)
                        offset += len(data)

        return self.adapters.UploadAdapter(parts(), timeout=self.timeout)

    @_typed
    def download(self, name: str, folder: str | os.PathLike) -> None:
        """Writes the folder of an adapter, alias or generation, and checks its digests."""
        os.makedirs(folder, exist_ok=True)
        expected, target = {}, None
        try:
            for part in self.adapters.DownloadAdapter(adapter_pb2.DownloadAdapterRequest(name=name), timeout=self.timeout):
                if part.WhichOneof("part") == "file":
                    # It must stay in the folder, whoever the server is.
                    if not re.fullmatch(r"\w+\.(json|safetensors|jinja)", part.file.name, re.ASCII):
                        raise ValueError(f"the server sent a file {part.file.name!r}")
                    if target:
                        target.close()
                    path = os.path.join(folder, part.file.name)
                    expected[path], target = part.file.sha256, open(path, "wb")
                else:
                    target.write(part.chunk.data)
        finally:
            if target:
                target.close()
        for path, digest in expected.items():
            if _digest(path) != digest:
                raise ValueError(f"{path} is not what the server has")

    @_typed
    def list_adapters(self) -> list[adapter_pb2.Adapter]:
        """All adapters by name."""
        found, token = [], ""
        while True:
            request = adapter_pb2.ListAdaptersRequest(page_token=token)
            page = self.adapters.ListAdapters(request, timeout=self.timeout)
            found.extend(page.adapters)
            token = page.next_page_token
            if not token:
                return found

    @_typed
    def delete_adapter(self, name: str, *, request_id: str | None = None) -> None:
        """Deletes an adapter and its generations."""
        request = adapter_pb2.DeleteAdapterRequest(name=name, request_id=_id(request_id))
        self.adapters.DeleteAdapter(request, timeout=self.timeout)

    @_typed
    def set_alias(
        self,
        name: str,
        adapter: str,
        *,
        expected_generation: str | None = None,
        policy: str | None = None,
        request_id: str | None = None,
    ) -> adapter_pb2.Alias:
        """Points an alias at an adapter or generation; with `expected_generation` only if it points there now.

        With a `policy` this target and every later one has to pass it; empty text ends that.
        """
        request = adapter_pb2.SetAliasRequest(
            name=name, adapter=adapter, expected_generation=expected_generation, policy=policy,
            request_id=_id(request_id),
        )
        return self.adapters.SetAlias(request, timeout=self.timeout)

    @_typed
    def upload_dataset(
        self,
        name: str,
        data: bytes | str | os.PathLike,
        *,
        request_id: str | None = None,
        expected_id: str | None = None,
        **declaration,
    ) -> dataset_pb2.Dataset:
        """Uploads rows, given as bytes or as a path, under a name; `declaration` as in DatasetDeclaration."""
        whole = isinstance(data, bytes)
        with io.BytesIO(data) if whole else open(data, "rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
            first = dataset_pb2.UploadDatasetHeader(
                name=name, size=source.seek(0, os.SEEK_END), sha256=digest,
                request_id=_id(request_id), expected_id=expected_id,
                declaration=dataset_pb2.DatasetDeclaration(**declaration),
            )
            source.seek(0)

            def parts():
                yield dataset_pb2.UploadDatasetRequest(header=first)
                offset = 0
                while piece := source.read(CHUNK):
                    chunk = dataset_pb2.DatasetChunk(offset=offset, data=piece)
                    yield dataset_pb2.UploadDatasetRequest(chunk=chunk)
                    offset += len(piece)

            return self.datasets.UploadDataset(parts(), timeout=self.timeout)

    @_typed
    def upload_images(
        self,
        name: str,
        rows: Iterable[dict],
        *,
        image_column: str = "image",
        request_id: str | None = None,
        expected_id: str | None = None,
        **declaration,
    ) -> dataset_pb2.Dataset:
        """Uploads images one by one; `declaration` as in DatasetDeclaration.

        A row is a dict as in ImageRow: `image` as bytes or as a path, `labels`, `values` of group columns, `split`.
        """
        first = dataset_pb2.UploadDatasetHeader(
            name=name, request_id=_id(request_id), expected_id=expected_id,
            declaration=dataset_pb2.DatasetDeclaration(image_column=image_column, **declaration),
        )

        def parts():
            yield dataset_pb2.UploadDatasetRequest(header=first)
            for row in rows:
                image = row["image"]
                if not isinstance(image, bytes):
                    with open(image, "rb") as source:
                        image = source.read()
                yield dataset_pb2.UploadDatasetRequest(row=dataset_pb2.ImageRow(**{**row, "image": image}))

        return self.datasets.UploadDataset(parts(), timeout=self.timeout)

    @_typed
    def load_dataset(
        self,
        name: str,
        directory: str,
        listing: str,
        *,
        image_column: str = "image",
        request_id: str | None = None,
        expected_id: str | None = None,
        **declaration,
    ) -> dataset_pb2.Dataset:
        """Takes images from a folder of the server, as a CSV file in it lists them."""
        request = dataset_pb2.LoadDatasetRequest(
            name=name, directory=directory, listing=listing, request_id=_id(request_id), expected_id=expected_id,
            declaration=dataset_pb2.DatasetDeclaration(image_column=image_column, **declaration),
        )
        return self.datasets.LoadDataset(request, timeout=self.timeout)

    @_typed
    def fine_tune(
        self,
        adapter: str,
        dataset: str,
        *,
        alias: str = "",
        expected_generation: str | None = None,
        base_model: str = "",
        request_id: str | None = None,
        **settings,
    ) -> str:
        """Makes a job that trains on a data set and publishes the result; returns its id.

        `settings` as in TrainingSettings, messages as dicts: `lora={"rank": 16}`, or `full={}` for all weights.
        """
        request = fine_tuning_pb2.CreateFineTuningJobRequest(
            adapter=adapter, dataset=dataset, settings=training_pb2.TrainingSettings(**settings), alias=alias,
            expected_generation=expected_generation, base_model=base_model, request_id=_id(request_id),
        )
        return self.fine_tuning.CreateFineTuningJob(request, timeout=self.timeout).id

    def watch_job(self, job: str, token: str = "") -> Iterator[job_pb2.WatchJobResponse]:
        """Yields the events of a job until it has ended, each once, beginning after `token`.

        A broken stream is taken up again after the last event; the error is raised when no event has come for
        `timeout` seconds of trying. Closing the iterator leaves the job alone.
        """
        broken_since = None
        while True:
            events = self.jobs.WatchJob(job_pb2.WatchJobRequest(id=job, token=token))
            try:
                for event in events:
                    token, broken_since = event.token, None
                    yield event
                return
            except grpc.RpcError as error:
                now = time.monotonic()
                broken_since = now if broken_since is None else broken_since
                if error.code() is not grpc.StatusCode.UNAVAILABLE or now - broken_since > self.timeout:
                    raise EvenkeelError(error) from error
                time.sleep(0.5)
            finally:
                events.cancel()

    def finish_job(self, job: str) -> job_pb2.Job:
        """Waits until a job has ended, and returns it: succeeded, failed or cancelled."""
        for _ in self.watch_job(job):
            pass
        return self.job(job)

    @_typed
    def job(self, job: str) -> job_pb2.Job:
        """A job as it is now."""
        return self.jobs.GetJob(job_pb2.GetJobRequest(id=job), timeout=self.timeout)

    @_typed
    def cancel_job(self, job: str, *, request_id: str | None = None) -> job_pb2.Job:
        """Ends a job; its last checkpoint stays."""
        return self.jobs.CancelJob(job_pb2.CancelJobRequest(id=job, request_id=_id(request_id)), timeout=self.timeout)

    @_typed
    def audit(
        self,
        name: str,
        dataset: str,
        models: Iterable[str | dict],
        *,
        sweeps: Iterable[dict] = (),
        keep_models: bool | None = None,
        base_model: str = "",
        request_id: str | None = None,
        **settings,
    ) -> str:
        """Makes a job that audits models on a data set; returns its id. The report is kept under `name`.

        A model is the name of an adapter, an empty text for the base model, or a dict as in AuditModel; the first is
        what others are compared with. `settings` as in AuditSettings, messages as dicts: `task={"head": {}}`.
        """
        request = audit_pb2.CreateAuditRequest(
            name=name, dataset=dataset, models=[_model(model) for model in models], sweeps=list(sweeps),
            settings=audit_settings_pb2.AuditSettings(**settings), keep_models=keep_models,
            base_model=base_model, request_id=_id(request_id),
        )
        return self.audits.CreateAudit(request, timeout=self.timeout).id

    @_typed
    def report(self, name: str) -> audit_report_pb2.AuditReport:
        """A report by its id, or the newest of an audit's name."""
        return self.audits.GetAuditReport(audit_pb2.GetAuditReportRequest(name=name), timeout=self.timeout).report

    @_typed
    def report_file(self, name: str, format: str) -> bytes:
        """A report as a file: `json`, `html`, `markdown` or `csv`."""
        wanted = audit_pb2.ReportFormat.Value(f"REPORT_FORMAT_{format.upper()}")
        request = audit_pb2.GetAuditReportRequest(name=name, format=wanted)
        return self.audits.GetAuditReport(request, timeout=self.timeout).file


def _model(model: str | dict) -> audit_pb2.AuditModel:
    if isinstance(model, dict):
        return audit_pb2.AuditModel(**model)
    return audit_pb2.AuditModel(adapter=model) if model else audit_pb2.AuditModel(base={})


def _prompt(prompt: str | Messages) -> dict:
    if isinstance(prompt, str):
        return {"prompt": prompt}
    return {"messages": [inference_pb2.ChatMessage(**message) for message in prompt]}


def _digest(path: str | os.PathLike) -> str:
    with open(path, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _id(request_id: str | None) -> str:
    return request_id if request_id is not None else str(uuid.uuid4())

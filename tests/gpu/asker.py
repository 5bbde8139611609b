"""One of several processes that ask a server together. usage: asker.py ADDRESS, then JSON lines on stdin.

A line has `kind` (stream or score) and `jobs`; the answer is `prepared`; the next line is the time of the begin, on the
clock that all processes of a machine share; the answer to that is what each job got. Of a stream the times of its
tokens, of a score the time of its end and log-probabilities.
"""

import asyncio
import json
import sys
import time

import grpc
from evenkeel.v1 import inference_pb2, inference_pb2_grpc

DEADLINE = 60


def generation(ids, new, adapter):
    """A greedy stream of exactly `new` tokens."""
    sampling = inference_pb2.SamplingParams(max_new_tokens=new, temperature=0, ignore_eos=True)
    return inference_pb2.GenerateRequest(adapter=adapter, prompt_token_ids=inference_pb2.TokenIds(ids=ids),
                                         sampling=sampling)


def scoring(prompt, candidates, adapter=""):
    """Log-probabilities of candidates after a prompt, all of ids."""
    ids = lambda values: inference_pb2.TokenIds(ids=values)
    return inference_pb2.ScoreRequest(adapter=adapter, prompt_token_ids=ids(prompt),
                                      candidates=[inference_pb2.Candidate(token_ids=ids(c)) for c in candidates])


async def stream(stub, ids, new, adapter):
    times = []
    async for piece in stub.GenerateStream(generation(ids, new, adapter), timeout=DEADLINE):
        times += [time.perf_counter()] * len(piece.token_ids)
    if len(times) != new:
        raise RuntimeError(f"{len(times)} tokens instead of {new}")
    return times


async def score(stub, prompt, candidates):
    answer = await stub.Score(scoring(prompt, candidates), timeout=DEADLINE)
    return time.perf_counter(), [list(scored.token_logprobs) for scored in answer.candidates]


def tell(value):
    print(json.dumps(value), flush=True)


async def main():
    async with grpc.aio.insecure_channel(sys.argv[1]) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        await channel.channel_ready()
        tell("ready")
        while line := sys.stdin.readline():
            asked = json.loads(line)
            call = {"stream": stream, "score": score}[asked["kind"]]
            tell("prepared")
            time.sleep(max(0, json.loads(sys.stdin.readline()) - time.perf_counter()))
            try:
                tell({"answers": await asyncio.gather(*[call(stub, *job) for job in asked["jobs"]])})
            except Exception as fault:
                tell({"fault": f"{type(fault).__name__}: {fault}"})


if __name__ == "__main__":
    asyncio.run(main())

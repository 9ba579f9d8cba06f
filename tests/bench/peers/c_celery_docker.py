"""Peer C: the usual queue of Python. FastAPI hands the message to Celery over Redis; a worker of four processes starts a
container with the Docker SDK, and the answer waits for the result.

Without `Prefer: wait` a submission is accepted and not waited for, as Celery's own guide has it: `send_task`, then 202.

BENCH_REDIS_PORT names the server; BENCH_IMAGE and BENCH_PROGRAM are those of every other system here. Redis keeps an
append-only file, fsync every second: what Celery has accepted can be lost for up to a second when the machine dies.
"""

import json
import os
import secrets
import socket
from typing import Annotated

import docker
from celery import Celery
from fastapi import FastAPI, Header, Response
from pydantic import BaseModel

REDIS = f"redis://127.0.0.1:{os.environ['BENCH_REDIS_PORT']}/0"
CONCURRENCY = 4
celery = Celery("bench", broker=REDIS, backend=REDIS)
celery.conf.update(task_acks_late=True, worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True, result_expires=600)


@celery.task(name="run")
def run(message: str) -> dict:
    client = engine()
    # Not `detach`: with it the SDK leaves standard input open when the stream ends.
    container = client.containers.create(
        os.environ["BENCH_IMAGE"], ["python3", "-c", os.environ["BENCH_PROGRAM"]], stdin_open=True,
        mem_limit="1g", nano_cpus=1_000_000_000, network_mode="none",
    )
    try:
        stream = container.attach_socket(params={"stdin": 1, "stream": 1})
        container.start()
        stream._sock.sendall(json.dumps({"message": message}).encode() + b"\n")
        stream._sock.shutdown(socket.SHUT_WR)
        if (code := container.wait()["StatusCode"]) != 0:
            raise RuntimeError(f"exit code {code}: {container.logs(stdout=False, stderr=True)!r}")
        return json.loads(container.logs(stdout=True, stderr=False))
    finally:
        container.remove(force=True)


_engine = None


def engine() -> docker.DockerClient:
    """One client for each process of the worker."""
    global _engine
    if _engine is None:
        _engine = docker.from_env(timeout=120)
    return _engine


app = FastAPI()


class Message(BaseModel):
    message: str
    conversationId: str | None = None


@app.post("/api/conversation")
def conversation(body: Message, answer: Response, x_user_id: Annotated[str, Header()], prefer: Annotated[str | None, Header()] = None) -> dict:
    sent = celery.send_task("run", [body.message], task_id=f"run_{secrets.token_hex(16)}", headers={"userId": x_user_id})
    if prefer is None:
        answer.status_code = 202
        return {"id": sent.id, "userId": x_user_id, "status": "queued", "message": body.message}
    return sent.get(timeout=60)

"""Peer R: the usual way to accept work in Python. FastAPI, and a Redis list that workers would pop from.

Redis runs with `appendonly yes` and `appendfsync everysec`, its recommended setting: an accepted submission can be lost for
up to a second when the machine dies. Quayside is measured with an fsync before every 202, so the peer has the easier work.

BENCH_REDIS_PORT names the server, BENCH_REDIS_LIST the list.
"""

import json
import os
import secrets
import time
from contextlib import asynccontextmanager
from typing import Annotated

import redis.asyncio as redis
from fastapi import FastAPI, Header
from pydantic import BaseModel

LIST = os.environ["BENCH_REDIS_LIST"]
client = redis.Redis(host="127.0.0.1", port=int(os.environ["BENCH_REDIS_PORT"]))


@asynccontextmanager
async def lifespan(_: FastAPI):
    await client.ping()
    yield
    await client.aclose()


app = FastAPI(lifespan=lifespan)


class Message(BaseModel):
    message: str
    conversationId: str | None = None


@app.post("/api/conversation", status_code=202)
async def conversation(body: Message, x_user_id: Annotated[str, Header()]) -> dict:
    run = {
        "id": f"run_{secrets.token_hex(16)}",
        "conversationId": body.conversationId or f"conv_{secrets.token_hex(16)}",
        "userId": x_user_id,
        "status": "queued",
        "message": body.message,
        "createdAt": time.time(),
    }
    await client.rpush(LIST, json.dumps(run))
    return run

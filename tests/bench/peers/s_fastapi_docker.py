"""Peer S: the design Quayside replaces, kept as small as it was. FastAPI, and `docker run` inside the request.

The original pasted the user's message into a shell line, `docker run ... IMAGE sh -c "... $MESSAGE"`, so a quote in a
message ran as a command. That hole is not copied: the message goes in on standard input and the program is a fixed argument.
It costs the peer nothing (one shell less to start); the limits, the flags and the blocking request are the original's.

BENCH_IMAGE and BENCH_PROGRAM (Python: a message object in, a JSON object out) come from the environment, because Quayside
is given the very same two.
"""

import asyncio
import json
import os

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

COMMAND = [
    "docker", "run", "--rm", "-i", "--memory=1g", "--cpus=1", "--network=none",
    os.environ["BENCH_IMAGE"], "python3", "-c", os.environ["BENCH_PROGRAM"],
]

app = FastAPI()


class Message(BaseModel):
    message: str
    conversationId: str | None = None


@app.post("/api/conversation")
async def conversation(body: Message) -> dict:
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(json.dumps({"message": body.message}).encode())
    if process.returncode != 0:
        raise HTTPException(500, err.decode(errors="replace"))
    return json.loads(out)

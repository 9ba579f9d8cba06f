"""The load: a client that costs next to nothing itself, and wrk for everything that is faster than a Python loop."""

import json
import resource
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from systems import BenchError

HERE = Path(__file__).parent
REPLY_SECONDS = 90


class Client:
    """One user with one connection, who submits and waits for the result. The request is one write and the answer mostly
    one read: against a reply of two milliseconds the client of Python's library would be a good part of the figure."""

    def __init__(self, system, number: int):
        self.system = system
        self.user = f"bench-{number}"
        self.socket = socket.create_connection(system.address, timeout=REPLY_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = 0
        self.result: dict = {}

    def run(self) -> float:
        """Seconds from the submission to the result, which is kept. Anything but the right result is an error, never a figure."""
        self.sent += 1
        message = f"measure twice, cut once, number {self.sent}"
        request = self.request("POST", "/api/conversation", {"message": message}, "Prefer: wait=60\r\n")
        started = time.perf_counter()
        self.socket.sendall(request)
        status, body = self.answer()
        seconds = time.perf_counter() - started
        self.result = json.loads(body) if status == 200 else {}
        if self.result.get("text") != message or self.result.get("status", "completed") != "completed":
            raise BenchError(f"{self.system.label} answered {status} instead of the result: {body[:600]!r}")
        return seconds

    def submit(self, message: str, conversation: str | None = None, **more) -> dict:
        """Accepted, and not waited for."""
        body = {"message": message} | ({"conversationId": conversation} if conversation else {}) | more
        self.socket.sendall(self.request("POST", "/api/conversation", body))
        status, answer = self.answer()
        if status != 202:
            raise BenchError(f"{self.system.label} answered {status} to a submission: {answer[:600]!r}")
        return json.loads(answer)

    def request(self, method: str, path: str, body: dict | None = None, headers: str = "") -> bytes:
        content = b"" if body is None else json.dumps(body).encode()
        head = (f"{method} {path} HTTP/1.1\r\nHost: {self.system.address[0]}:{self.system.address[1]}\r\nX-User-Id: {self.user}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n{headers}\r\n")
        return head.encode() + content

    def answer(self) -> tuple[int, bytes]:
        """Status and body of an answer that states its length, as those of all systems here do."""
        received = b""
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += self.read()
        head = received[:end].decode("latin-1").lower().split("\r\n")
        length = next((int(line.split(":")[1]) for line in head if line.startswith("content-length:")), None)
        if length is None:
            raise BenchError(f"{self.system.label} sent an answer without a length: {head}")
        body = received[end + 4:]
        while len(body) < length:
            body += self.read()
        return int(head[0].split()[1]), body

    def read(self) -> bytes:
        try:
            piece = self.socket.recv(65536)
        except OSError as error:
            raise BenchError(f"{self.system.label} did not answer: {error}") from error
        if not piece:
            raise BenchError(f"{self.system.label} closed the connection instead of answering")
        return piece

    def close(self):
        self.socket.close()


@dataclass
class Load:
    """What one call of wrk reported."""

    seconds: float
    sent: int
    accepted: int
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        return self.accepted / self.seconds


def wrk(system, script: str, connections: int, seconds: int, threads: int = 1, arguments: list[str] | None = None) -> Load:
    """Runs a wrk script of this folder that prints the line of `count.lua`; every answer must have been the right one."""
    host, port = system.address
    argv = ["wrk", "--threads", str(threads), "--connections", str(connections), "--duration", f"{seconds}s", "--timeout", "60s",
            "--script", str(HERE / script), f"http://{host}:{port}/api/conversation", "--", *(arguments or [])]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 120, cwd=HERE)
    line = next((line for line in done.stdout.splitlines() if line.startswith("BENCH\t")), None)
    if done.returncode != 0 or line is None:
        raise BenchError(f"wrk failed: {done.stdout}{done.stderr}")
    micros, sent, accepted, refused, errors, p50, p99, refusal = line.split("\t")[1:]
    if int(refused) or int(errors):
        raise BenchError(f"{system.label}: {refused} answers were not the right ones and {errors} connections failed; "
                         f"the first: {refusal or '-'}")
    if int(accepted) == 0:
        raise BenchError(f"{system.label} answered nothing within {seconds} s")
    return Load(int(micros) / 1e6, int(sent), int(accepted), int(p50) / 1000, int(p99) / 1000)


def own_cpu_seconds() -> float:
    """CPU time of this process and of the children that it has waited for: what the load generator itself has used."""
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))

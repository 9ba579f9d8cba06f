"""Starts and stops what is measured: Quayside, the peers, Redis. All of it on loopback, all of it stopped at the end."""

import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

START_SECONDS = 60
STOP_SECONDS = 40


class BenchError(Exception):
    """A figure would be worthless: the sentence says what went wrong."""


class Process:
    """A server in a process group of its own, so that Ctrl-C in the terminal is handled by the driver alone."""

    def __init__(self, name: str, argv: list[str], work_dir: Path, environment: dict[str, str] | None = None):
        self.name = name
        self.log = work_dir / f"{name}.log"
        # Settings of the caller's shell would change what is measured behind the written configuration's back.
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("QUAYSIDE", "RUST_LOG"))}
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=work_dir,
                env=clean | (environment or {}),
            )

    def wait_until(self, ready):
        """The first true answer of `ready`; an error with the log's end when the process ends or is not ready in time."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            answer = ready()
            if answer:
                return answer
            if self.popen.poll() is not None:
                raise BenchError(f"{self.name} ended with {self.popen.returncode} instead of starting:\n{self.log_end()}")
            time.sleep(0.02)
        raise BenchError(f"{self.name} was not ready within {START_SECONDS} s:\n{self.log_end()}")

    def log_end(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def stop(self):
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                print(f"warning: {self.name} did not stop within {STOP_SECONDS} s and is killed", file=sys.stderr)
        try:
            # Whatever it started itself (a docker client in the middle of a run) goes with it.
            os.killpg(self.popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.popen.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


class Redis:
    """A Redis of our own on a free port, as a queue is usually run: append-only file, fsync every second."""

    def __init__(self, work_dir: Path):
        self.port = free_port()
        data = work_dir / f"redis-{self.port}"
        data.mkdir()
        self.process = Process(
            f"redis-{self.port}",
            ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(data), "--appendonly", "yes",
             "--appendfsync", "everysec", "--save", ""],
            work_dir,
        )
        try:
            self.process.wait_until(lambda: accepts(self.port))
        except BaseException:
            self.process.stop()
            raise

    def count(self, key: str) -> int:
        """Length of a list, asked over the plain protocol."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(f"LLEN {key}\r\n".encode())
            answer = connection.makefile("rb").readline()
        if not answer.startswith(b":"):
            raise BenchError(f"Redis answered {answer!r} to LLEN")
        return int(answer[1:])

    def stop(self):
        self.process.stop()


class Quayside:
    """`quayside up` with a configuration and a data directory of its own."""

    def __init__(self, binary: str, work_dir: Path, name: str, configuration: str, label: str = "Quayside"):
        self.label = label
        self.data = work_dir / name / "data"
        self.data.mkdir(parents=True)
        config = work_dir / name / "quayside.toml"
        config.write_text(configuration + f"\n[backend]\nkind = \"embedded\"\ndata_dir = {toml(str(self.data))}\n")
        self.process = Process(name, [binary, "up", "--config", str(config)], work_dir)
        try:
            url = urllib.parse.urlsplit(self.process.wait_until(self.url))
            self.address = (url.hostname, url.port)
            self.process.wait_until(self.ready)
        except BaseException:
            self.process.stop()
            raise

    def url(self) -> str | None:
        """The bound address: away from a terminal it stands in a line of JSON that has a field `url`."""
        return next((record["url"] for record in self.records() if "url" in record), None)

    def records(self):
        """What it has logged so far: a JSON object a line."""
        for line in self.process.log.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record.get("fields", {}) | record

    def ready(self) -> bool:
        connection = http.client.HTTPConnection(*self.address, timeout=10)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def count(self) -> int:
        """Rows of the table `runs`, read from the file itself. Only after `stop`: the process must have no say in it."""
        for path in self.data.iterdir():
            with path.open("rb") as file:
                if file.read(15) != b"SQLite format 3":
                    continue
            database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
            try:
                return database.execute("SELECT count(*) FROM runs").fetchone()[0]
            finally:
                database.close()
        raise BenchError(f"no SQLite file in {self.data}")

    def stop(self):
        self.process.stop()


def toml(value) -> str:
    """JSON's strings and arrays of strings are TOML's too, as long as nothing outside ASCII is in them."""
    return json.dumps(value)


class Engine:
    """The Docker engine, asked over its socket: a `docker ps` for every look would cost as much as a container."""

    def __init__(self, mark: str):
        self.host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        if not self.host.startswith("unix://"):
            raise BenchError(f"DOCKER_HOST is {self.host}: the benchmark wants the engine of this machine (unix://...)")
        self.mark = mark

    def call(self, method: str, path: str, body: dict | None = None):
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(60)
            connection.sock.connect(self.host.removeprefix("unix://"))
            connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            body = answer.read()
        except OSError as error:
            raise BenchError(f"the Docker engine at {self.host} does not answer: {error}") from error
        finally:
            connection.close()
        if answer.status >= 400 and answer.status not in (404, 409):
            raise BenchError(f"the Docker engine answered {answer.status} to {method} {path}: {body!r}")
        return json.loads(body) if body else None

    def containers(self) -> list[str]:
        """Every container of this benchmark, whoever started it: the programs they run carry its mark."""
        return [one["Id"] for one in self.call("GET", "/containers/json?all=1") if self.mark in one["Command"]]

    def remove_all(self) -> int:
        left = self.containers()
        for container in left:
            self.call("DELETE", f"/containers/{container}?force=1")
        return len(left)

// Starts the real `quayside up` for a test file and stops it again. Nothing is replaced: the embedded
// backend in a folder of its own, the Docker engine of this machine, the agent image `quayside/agent-python`.

import { spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";

const REPOSITORY = resolve(import.meta.dirname, "../../..");
const BINARY = resolve(REPOSITORY, process.env.QUAYSIDE_BIN ?? "target/debug/quayside");
const START_MS = 30_000;
const DRAIN_MS = 45_000;

/** What is different from the defaults: small limits that a test can reach, and leases that end soon. */
function configuration({ bind, dataDir, agents, runningPerUser, queuedPerUser }) {
  const agent = (name, extra) => `
[agents.${name}]
description = "Runs Python (${name})"
image = "quayside/agent-python"
command = ["python3", "-u", "/agent/main.py"]
${extra}`;
  return `
[api]
bind = "${bind}"
default_agent = "python"

[backend]
kind = "embedded"
data_dir = "${dataDir}"

[worker]
slots = 4
lease = "4s"
heartbeat = "1s"

[runner]
uid_base = 410000

[limits]
running_per_user = ${runningPerUser}
queued_per_user = ${queuedPerUser}
${Object.entries(agents).map(([name, extra]) => agent(name, extra)).join("\n")}`;
}

/**
 * Starts a server. `agents` maps names to further lines of configuration. Returns
 * `{url, kill9(), start(), stop()}`; `start` after `kill9` uses the same port and data.
 */
export async function startServer({ agents = { python: "" }, runningPerUser = 2, queuedPerUser = 20 } = {}) {
  const folder = await mkdtemp(join(tmpdir(), "quayside-browser-"));
  const config = join(folder, "quayside.toml");
  const output = [];
  let child = null;
  let exited = null;
  let bind = "127.0.0.1:0";
  const server = { url: "", start, kill9, stop };

  async function start() {
    await writeFile(config, configuration({ bind, dataDir: join(folder, "data"), agents, runningPerUser, queuedPerUser }));
    child = spawn(BINARY, ["up", "--config", config], { cwd: folder, stdio: ["ignore", "pipe", "pipe"] });
    exited = new Promise((done) => child.once("exit", (code, signal) => done({ code, signal })));
    createInterface({ input: child.stderr }).on("line", (line) => output.push(line));
    const lines = createInterface({ input: child.stdout });
    server.url = await within(START_MS, "the server did not say where it listens", (found, failed) => {
      child.once("error", failed);
      exited.then(({ code, signal }) => failed(new Error(`the server ended at once (${code ?? signal})`)));
      lines.on("line", (line) => {
        output.push(line);
        const url = urlIn(line);
        if (url) found(url);
      });
    });
    bind = new URL(server.url).host;
    await until(START_MS, "the server did not become ready", async () => (await fetch(`${server.url}/readyz`)).ok);
  }

  async function kill9() {
    child.kill("SIGKILL");
    await exited;
  }

  /** Drains the server. Fails when it does not end well, or had ended by itself before. */
  async function stop() {
    child.kill("SIGTERM");
    try {
      const { code, signal } = await within(DRAIN_MS, "the server did not drain", (found) => exited.then(found));
      if (code !== 0) throw new Error(`the server ended with ${code ?? signal}\n${output.slice(-20).join("\n")}`);
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  }

  async function within(milliseconds, what, body) {
    let timer;
    try {
      return await new Promise((found, failed) => {
        timer = setTimeout(() => failed(new Error(what)), milliseconds);
        body(found, failed);
      });
    } catch (error) {
      child.kill("SIGKILL");
      throw new Error(`${error.message}\n${output.slice(-20).join("\n")}`);
    } finally {
      clearTimeout(timer);
    }
  }

  await start();
  return server;
}

function urlIn(line) {
  try {
    return JSON.parse(line).url?.replace(/\/$/, "") ?? null;
  } catch {
    return null;
  }
}

/** Waits until `condition` holds, asking again every 50 ms; a refused connection counts as "not yet". */
export async function until(milliseconds, what, condition) {
  const end = Date.now() + milliseconds;
  for (;;) {
    const held = await condition().catch((error) => {
      if (error instanceof TypeError) return false;
      throw error;
    });
    if (held) return held;
    if (Date.now() > end) throw new Error(`${what} within ${milliseconds} ms`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** The HTTP API as the page's user sees it, to look behind the page. */
export function clientOf(server, userId) {
  const call = async (path, init = {}) => {
    const response = await fetch(server.url + path, { ...init, headers: { "X-User-Id": userId, ...init.headers } });
    return response.status === 204 ? null : response.json();
  };
  return {
    get: call,
    submit: (message, more = {}) =>
      call("/api/conversation", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ message, ...more }),
      }),
    cancel: (runId) => call(`/api/runs/${runId}/cancel`, { method: "POST" }),
  };
}

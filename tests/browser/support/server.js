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
function configuration({ bind, dataDir, agents, runningPerUser, queuedPerUser, auth, backend, google }) {
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
auth = "${auth}"

[backend]
kind = "${backend}"
data_dir = "${dataDir}"

[google]
${Object.entries(google).map(([key, value]) => `${key} = "${value}"`).join("\n")}

[worker]
slots = 4
lease = "4s"
heartbeat = "1s"
warm_memory = "0B"
prove_limits = false

[runner]
uid_base = 410000

[limits]
running_per_user = ${runningPerUser}
queued_per_user = ${queuedPerUser}
${Object.entries(agents).map(([name, extra]) => agent(name, extra)).join("\n")}`;
}

/**
 * Starts a server. `agents` maps names to further lines of configuration, `google` holds keys of that section, `env`
 * is added to the environment, `ready` is the path that answers once it is. Returns `{url, kill9(), start(), stop()}`;
 * `start` after `kill9` uses the same port and data.
 */
export async function startServer({
  command = "up", agents = { python: "" }, runningPerUser = 2, queuedPerUser = 20, auth = "header", backend = "embedded", google = {}, env = {},
  ready = "/readyz",
} = {}) {
  const folder = await mkdtemp(join(tmpdir(), "quayside-browser-"));
  const config = join(folder, "quayside.toml");
  const output = [];
  let child = null;
  let exited = null;
  let bind = "127.0.0.1:0";
  const server = { url: "", start, kill9, stop };

  async function start() {
    await writeFile(config, configuration({
      bind, dataDir: join(folder, "data"), agents, runningPerUser, queuedPerUser, auth, backend, google,
    }));
    child = spawn(BINARY, [command, "--config", config], { cwd: folder, env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"] });
    exited = new Promise((done) => child.once("exit", (code, signal) => done({ code, signal })));
    createInterface({ input: child.stderr }).on("line", (line) => output.push(line));
    const lines = createInterface({ input: child.stdout });
    if (command === "worker") return;
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
    await until(START_MS, "the server did not become ready", async () => (await fetch(server.url + ready)).ok).catch((error) => {
      child.kill("SIGKILL");
      throw error;
    });
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

/** Starts a worker on the `google` backend. It needs no answering: runs wait until it takes them. */
export const startWorker = (options) => startServer({ ...options, command: "worker" });

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
export const clientOf = (server, userId) => clientWith(server, { "X-User-Id": userId });

/** The same with any headers that say who asks. */
export function clientWith(server, identity) {
  const call = async (path, init = {}) => {
    const response = await fetch(server.url + path, { ...init, headers: { ...identity, ...init.headers } });
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

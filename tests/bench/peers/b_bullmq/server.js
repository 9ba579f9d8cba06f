// Peer B: the usual queue of Node. An HTTP server hands the message to BullMQ over Redis; a worker with a concurrency of
// four starts a container with dockerode, and the answer waits for the result. Server and worker share one process, which
// spares the peer a second one.
//
// BENCH_PORT and BENCH_REDIS_PORT are the ports; BENCH_IMAGE and BENCH_PROGRAM are those of every other system here.
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { PassThrough } from "node:stream";

// The packages are installed outside the checkout, where node does not look by itself.
const require = createRequire(process.env.BENCH_MODULES + "/");
const { Queue, QueueEvents, Worker } = require("bullmq");
const Docker = require("dockerode");

const connection = { host: "127.0.0.1", port: Number(process.env.BENCH_REDIS_PORT), maxRetriesPerRequest: null };
const docker = new Docker();
const queue = new Queue("runs", { connection, defaultJobOptions: { removeOnComplete: 1000, removeOnFail: 1000 } });
const events = new QueueEvents("runs", { connection });

async function run({ data }) {
  const container = await docker.createContainer({
    Image: process.env.BENCH_IMAGE,
    Cmd: ["python3", "-c", process.env.BENCH_PROGRAM],
    OpenStdin: true, StdinOnce: true, AttachStdin: true, AttachStdout: true, AttachStderr: true,
    HostConfig: { Memory: 1 << 30, NanoCpus: 1e9, NetworkMode: "none" },
  });
  try {
    const stream = await container.attach({ stream: true, hijack: true, stdin: true, stdout: true, stderr: true });
    const [out, err] = [collect(), collect()];
    container.modem.demuxStream(stream, out.sink, err.sink);
    const ended = new Promise((resolve, reject) => stream.on("end", resolve).on("error", reject));
    await container.start();
    stream.write(JSON.stringify({ message: data.message }) + "\n");
    stream.end();
    const { StatusCode } = await container.wait();
    await ended;
    if (StatusCode !== 0) throw new Error(`exit code ${StatusCode}: ${err.text()}`);
    return JSON.parse(out.text());
  } finally {
    await container.remove({ force: true });
  }
}

function collect() {
  const sink = new PassThrough(), pieces = [];
  sink.on("data", (piece) => pieces.push(piece));
  return { sink, text: () => Buffer.concat(pieces).toString() };
}

const worker = new Worker("runs", run, { connection, concurrency: 4 });
await Promise.all([events.waitUntilReady(), worker.waitUntilReady(), queue.waitUntilReady()]);

const server = createServer(async (request, response) => {
  let status = 200, answer;
  try {
    const pieces = [];
    for await (const piece of request) pieces.push(piece);
    const { message } = JSON.parse(Buffer.concat(pieces));
    const added = await queue.add("run", { message, userId: request.headers["x-user-id"] });
    answer = await added.waitUntilFinished(events, 60_000);
  } catch (error) {
    [status, answer] = [500, { error: String(error) }];
  }
  const body = Buffer.from(JSON.stringify(answer));
  response.writeHead(status, { "Content-Type": "application/json", "Content-Length": body.length });
  response.end(body);
});
server.listen(Number(process.env.BENCH_PORT), "127.0.0.1");

process.on("SIGTERM", async () => {
  server.close();
  await worker.close();
  process.exit(0);
});

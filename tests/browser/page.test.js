// The main job at the page: type, see it stream, see why it waits, cancel, reload in the middle.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { examples } from "../../api/web/examples.js";
import { counting, openPage, startBrowser } from "./support/browser.js";
import { clientOf, startServer, until } from "./support/server.js";

let server;
let browser;

before(async () => {
  server = await startServer({
    agents: { python: "", hasty: 'timeout = "2s"', terse: 'output_limit = "1KiB"' },
    runningPerUser: 2,
    queuedPerUser: 3,
  });
  browser = await startBrowser();
});

after(async () => {
  await browser?.close();
  await server?.stop();
});

test("a reply grows on the page while its run is in progress, and ends with duration and exit code", async () => {
  const at = await openPage(browser, server.url);
  const { message, output } = counting(12, 0.4);
  const run = await at.send(message);
  await at.phase(run, "streaming");
  const first = (await at.text(run)).length;
  assert.ok(first < output.length, "the whole reply came at once");
  await at.page.waitForFunction((seen) => {
    const article = document.querySelector("article.run");
    return article.dataset.phase === "streaming" && article.querySelector(".reply").textContent.length > seen;
  }, first);
  assert.equal(await at.reply(run).getAttribute("aria-busy"), "true");
  await at.screenshot("streaming-light");
  await at.phase(run, "completed");
  assert.equal(await at.text(run), output);
  assert.equal(await at.reply(run).getAttribute("aria-busy"), "false");
  assert.match(await run.locator(".state-facts").innerText(), /^\d.* · exit code 0$/);
  assert.match(at.page.url(), /#\/c\/conv_[0-9A-Za-z]{22}$/);
  assert.equal(await at.page.title(), `${await at.page.locator("#title").innerText()} · Quayside`);
  await at.listed(1);
  await at.close();
});

/** The picture of the page: one run done, one replying, one waiting. */
async function showcase(at) {
  await at.page.setViewportSize({ width: 1280, height: 1040 });
  const count = await at.send(examples.find(({ key }) => key === "count").message);
  await count.locator(".reply", { hasText: "8 of 20" }).waitFor();
  const next = await at.send('print("안녕하세요, Quayside")');
  await next.getByText("number 1 in line").waitFor();
  await count.locator(".reply", { hasText: "12 of 20" }).waitFor();
  await at.screenshot("showcase-light");
  await count.getByRole("button", { name: "Cancel this run" }).click();
  await at.phase(next, "completed");
}

test("the examples of the first page run, and can be watched", async () => {
  const at = await openPage(browser, server.url);
  await at.page.getByRole("button", { name: "Draw a fractal" }).click();
  await at.page.keyboard.press("Enter"); // the focus is on the button that sends
  await at.phase(at.run(0), "completed");
  assert.equal((await at.text(at.run(0))).trimEnd().split("\n").length, 25);
  await showcase(at);
  await at.page.getByRole("link", { name: "New conversation" }).click();
  await at.page.getByRole("button", { name: "Look around inside" }).click();
  await at.page.keyboard.press("Enter");
  await at.phase(at.run(0), "completed");
  assert.match(await at.text(at.run(0)), /^python .*\nuser +\d+\nprocesses +\d+\nmemory .*\nnetwork +closed:/);
  await at.page.getByRole("link", { name: "New conversation" }).click();
  await at.page.getByRole("button", { name: "Count, slowly" }).click();
  await at.page.keyboard.press("Enter");
  await at.page.waitForFunction(() => document.querySelector(".reply")?.textContent.includes("9 of 20"));
  await at.screenshot("examples-light");
  await at.phase(at.run(0), "completed");
  assert.match(await at.text(at.run(0)), /\n20 of 20 {2}={20}\ndone\n$/);
  await at.close();
});

test("a second message of a conversation waits for the first and says so", async () => {
  const at = await openPage(browser, server.url);
  const first = await at.send(counting(10, 0.4).message);
  const second = await at.send('print("my turn")');
  await at.phase(second, "queued");
  await second.getByText("Waiting · an earlier message of this conversation is still running · number 1 in line").waitFor();
  await at.screenshot("queued-light");
  await at.phase(first, "completed");
  await at.phase(second, "completed");
  assert.equal(await at.text(second), "my turn\n");
  await at.close();
});

test("a message that waits for the user's own runs elsewhere says so, and leaves the line when one ends", async () => {
  const at = await openPage(browser, server.url);
  const api = clientOf(server, await at.userId());
  const long = await Promise.all([1, 2].map(() => api.submit("import time\ntime.sleep(60)")));
  await until(30_000, "both runs did not start", async () =>
    (await Promise.all(long.map(({ id }) => api.get(`/api/runs/${id}`)))).every(({ status }) => status === "in_progress"));
  const run = await at.send('print("after all")');
  await run.getByText("as many of your messages are running as may at once").waitFor();
  await Promise.all(long.map(({ id }) => api.cancel(id)));
  await at.phase(run, "completed");
  assert.equal(await at.text(run), "after all\n");
  await at.close();
});

test("cancel stops a run, says so only when its container is gone, and keeps what it had said", async () => {
  const at = await openPage(browser, server.url);
  const run = await at.send('import time\nprint("first words", flush=True)\ntime.sleep(60)');
  await at.phase(run, "streaming");
  await run.getByRole("button", { name: "Cancel this run" }).click();
  await at.phase(run, "cancelling", "cancelled");
  await at.phase(run, "cancelled");
  assert.equal(await at.text(run), "first words\n");
  assert.equal(await run.getByRole("button", { name: "Cancel this run" }).count(), 0);
  const id = await run.getAttribute("data-run");
  assert.equal((await clientOf(server, await at.userId()).get(`/api/runs/${id}`)).status, "cancelled");
  await at.close();
});

test("a run that waits can be cancelled", async () => {
  const at = await openPage(browser, server.url);
  const first = await at.send("import time\ntime.sleep(60)");
  const second = await at.send('print("never")');
  await at.phase(second, "queued");
  await second.getByRole("button", { name: "Cancel this run" }).click();
  await at.phase(second, "cancelled");
  await first.getByRole("button", { name: "Cancel this run" }).click();
  await at.phase(first, "cancelled");
  await at.close();
});

test("a reload in the middle picks the reply up from its beginning", async () => {
  const at = await openPage(browser, server.url);
  const { message, output } = counting(16, 0.4);
  await at.phase(await at.send(message), "streaming");
  await at.page.waitForFunction(() => document.querySelector(".reply").textContent.includes("line 3\n"));
  await at.page.reload();
  const run = at.run(0);
  await at.phase(run, "streaming");
  assert.ok((await at.text(run)).startsWith("line 1\n"));
  await at.phase(run, "completed");
  assert.equal(await at.text(run), output);
  await at.close();
});

test("what ended badly is told in words", async () => {
  const at = await openPage(browser, server.url);
  const failed = await at.send('import sys\nprint("half way")\nsys.exit(3)');
  await at.phase(failed, "failed");
  assert.match(await failed.innerText(), /The program ended with an error\./);
  assert.match(await failed.locator(".state-facts").innerText(), /exit code 3/);
  assert.equal(await at.text(failed), "half way\n");

  await at.page.getByLabel("Agent").selectOption("hasty");
  const late = await at.send('import time\nprint("soon", flush=True)\ntime.sleep(60)');
  await at.phase(late, "timed_out");
  assert.match(await late.innerText(), /The time this run may take is over/);

  await at.page.getByLabel("Agent").selectOption("terse");
  const long = await at.send('print("x" * 5000)');
  await at.phase(long, "completed");
  assert.match(await long.innerText(), /What came after this point was dropped\./);
  assert.equal(await at.text(long), "x".repeat(1024));
  await at.screenshot("endings-light");
  await at.close();
});

test("silence is told from a reply that is missing", async () => {
  const at = await openPage(browser, server.url);
  const run = await at.send("x = 1");
  await at.phase(run, "completed");
  assert.match(await run.innerText(), /The agent printed nothing\./);
  assert.equal(await at.reply(run).isVisible(), false);
  await at.close();
});

test("a full queue is said in words, keeps the message and sends it when asked again", async () => {
  const at = await openPage(browser, server.url, { expected: [/status of 429/] });
  const api = clientOf(server, await at.userId());
  const blocker = await at.send("import time\ntime.sleep(60)");
  await at.phase(blocker, "in_progress");
  const waiting = [await at.send("print(1)"), await at.send("print(2)"), await at.send("print(3)")];
  await at.box.fill("print(4)");
  await at.box.press("Enter");
  await at.page.getByRole("alert").filter({ hasText: /more at once than this server takes.*You can send again in \d+ s\./ }).waitFor();
  assert.equal(await at.box.inputValue(), "print(4)");
  assert.equal(await at.runs.count(), 4);
  await at.screenshot("refused-light");
  await blocker.getByRole("button", { name: "Cancel this run" }).click();
  await at.phase(waiting[2], "completed");
  await at.page.getByRole("button", { name: "Send" }).click();
  await at.phase(at.run(4), "completed");
  assert.equal(await at.text(at.run(4)), "4\n");
  const conversation = await api.get(`/api/conversations/${at.page.url().split("/").at(-1)}`);
  assert.equal(conversation.runCount, 5);
  await at.close();
});

test("a message over the limit is refused by its field and stays in the box", async () => {
  const at = await openPage(browser, server.url, { expected: [/status of 4(13|22)/] });
  const message = `# ${"x".repeat(70_000)}`;
  await at.box.fill(message);
  await at.box.press("Enter");
  await at.page.getByRole("alert").filter({ hasText: /did not accept message|too long/ }).waitFor();
  assert.equal(await at.box.inputValue(), message);
  await at.close();
});

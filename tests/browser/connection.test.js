// Lost connections: the server killed under a running reply, an answer that never arrived, no network at all.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { counting, openPage, startBrowser } from "./support/browser.js";
import { clientOf, startServer } from "./support/server.js";

const NO_SERVER = [/ERR_CONNECTION_REFUSED/, /ERR_CONNECTION_RESET/, /ERR_INCOMPLETE_CHUNKED_ENCODING/, /ERR_EMPTY_RESPONSE/, /ERR_FAILED/, /ERR_INTERNET_DISCONNECTED/];

let server;
let browser;

before(async () => {
  server = await startServer();
  browser = await startBrowser();
});

after(async () => {
  await browser?.close();
  await server?.stop();
});

test("a killed server is noticed, tried again, and the run finishes with its reply told once", async () => {
  const at = await openPage(browser, server.url, { expected: NO_SERVER });
  const { message, output } = counting(12, 0.4);
  const run = await at.send(message);
  await at.page.waitForFunction(() => document.querySelector(".reply").textContent.includes("line 4\n"));
  await server.kill9();
  const line = at.page.locator("#connection");
  await line.getByText(/Connection lost\. Trying again in \d+ s\./).waitFor();
  assert.match(await at.text(run), /^line 1\nline 2\n/, "what was said before is gone");
  await at.screenshot("connection-lost-light");
  await line.getByRole("button", { name: "Retry now" }).click();
  // Nobody is there yet: the page goes on trying.
  await line.getByText(/Connection lost\. Trying again in \d+ s\./).waitFor();
  await server.start();
  await line.getByRole("button", { name: "Retry now" }).click();
  await line.waitFor({ state: "hidden" });
  await at.phase(run, "completed");
  assert.equal(await at.text(run), output);
  assert.match(await run.locator(".state-facts").innerText(), /2 attempts/);
  await at.close();
});

test("a lost answer keeps the message, and sending it again does not run it twice", async () => {
  const at = await openPage(browser, server.url, { expected: NO_SERVER });
  let lost = 0;
  await at.page.route("**/api/conversation", async (route) => {
    if (lost > 0) return route.continue();
    lost += 1;
    await route.fetch();
    return route.abort("connectionreset");
  });
  await at.box.fill('print("once")');
  await at.box.press("Enter");
  await at.page.getByRole("alert").filter({ hasText: "sending it again will not run it twice" }).waitFor();
  assert.equal(await at.box.inputValue(), 'print("once")');
  // Not even a reload in between loses the message or its key.
  await at.page.reload();
  assert.equal(await at.box.inputValue(), 'print("once")');
  await at.page.getByRole("button", { name: "Send" }).click();
  await at.phase(at.run(0), "completed");
  const { data } = await clientOf(server, await at.userId()).get("/api/conversations");
  assert.deepEqual(data.map(({ runCount }) => runCount), [1]);
  assert.equal(lost, 1);
  await at.close();
});

test("without a network the typed message stays, and another message is another run", async () => {
  const at = await openPage(browser, server.url, { expected: NO_SERVER });
  await at.page.context().setOffline(true);
  await at.box.fill("print(1)");
  await at.box.press("Enter");
  await at.page.getByRole("alert").filter({ hasText: "The server did not answer." }).waitFor();
  assert.equal(await at.box.inputValue(), "print(1)");
  await at.page.context().setOffline(false);
  const run = await at.send("print(2)");
  await at.phase(run, "completed");
  assert.equal(await at.text(run), "2\n");
  assert.equal(await at.page.getByRole("alert").filter({ visible: true }).count(), 0);
  await at.close();
});

test("a conversation that could not be read is asked for again", async () => {
  const at = await openPage(browser, server.url, { expected: NO_SERVER });
  await at.phase(await at.send('print("here")'), "completed");
  await at.page.route("**/api/conversations/*/runs?*", (route) => route.abort("connectionreset"), { times: 1 });
  await at.page.reload();
  await at.page.getByText("The server did not answer.").waitFor();
  await at.page.getByRole("main").getByRole("button", { name: "Try again" }).click();
  await at.phase(at.run(0), "completed");
  assert.equal(await at.text(at.run(0)), "here\n");
  await at.close();
});

test("a stream that answers nothing is read as the run", async () => {
  const at = await openPage(browser, server.url, { expected: NO_SERVER });
  // 204 is what the server says when the result was seen before; here it says so before anything was.
  await at.page.route("**/api/runs/*/events", async (route) => {
    const { id } = /runs\/(?<id>[^/]+)\/events/.exec(route.request().url()).groups;
    const client = clientOf(server, await at.userId());
    await client.get(`/api/runs/${id}?wait=30`);
    await route.fulfill({ status: 204 });
  });
  const run = await at.send('print("read, not streamed")');
  await at.phase(run, "completed");
  assert.equal(await at.text(run), "read, not streamed\n");
  await at.close();
});

// Whatever an agent prints and a user types is text: never markup, never a script, never an order of reading
// that lies, and never so much that the page stands still.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { openPage, startBrowser } from "./support/browser.js";
import { startServer } from "./support/server.js";

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

test("markup and scripts in a reply, a message and a title are shown as they are", async () => {
  const at = await openPage(browser, server.url);
  const markup = "<img src=x onerror=\"globalThis.hacked=1\"><script>globalThis.hacked=2</script><a href=\"javascript:alert(1)\">x</a>";
  const run = await at.send(`# ${markup}\nprint('''${markup}''')`);
  await at.phase(run, "completed");
  assert.equal(await at.text(run), `${markup}\n`);
  await at.page.locator(".row-title", { hasText: "<img src=x" }).waitFor();
  assert.equal(await at.page.locator("#title").innerText(), await at.page.locator(".row-title").innerText());
  assert.match(await run.locator(".said").innerText(), /<script>globalThis\.hacked=2<\/script>/);
  assert.equal(await at.page.evaluate(() => globalThis.hacked), undefined);
  assert.equal(await at.page.locator(".run img, .run script, .run a, .row img, #title *").count(), 0);
  await at.page.locator("#delete").click();
  assert.match(await at.page.locator("#confirm-body").innerText(), /<img src=x/);
  await at.screenshot("hostile-light");
  await at.close();
});

test("control characters become symbols, and what reorders text becomes visible", async () => {
  const at = await openPage(browser, server.url);
  const run = await at.send(String.raw`import sys
sys.stdout.write("nul \x00 esc \x1b[31m bell \x07 del \x7f c1 \x9b cr \r crlf \r\n tab \t end\n")
sys.stdout.write("rlo \u202e isolate \u2066 \u05e9\u05dc\u05d5\u05dd\n")
sys.stdout.write("\n\nevent: result\ndata: {\"status\":\"completed\"}\n\n")`);
  await at.phase(run, "completed");
  assert.equal(await at.text(run),
    "nul \u2400 esc \u241b[31m bell \u2407 del \u2421 c1 \u2426 cr \u240d crlf \n tab \t end\n" +
    "rlo \u27e8U+202E\u27e9 isolate \u27e8U+2066\u27e9 \u05e9\u05dc\u05d5\u05dd\n" +
    "\n\nevent: result\ndata: {\"status\":\"completed\"}\n\n");
  const block = run.locator(".reply .text-block").first();
  assert.equal(await block.getAttribute("dir"), "auto");
  assert.equal(await block.evaluate((node) => getComputedStyle(node).unicodeBidi), "plaintext");
  await at.close();
});

test("invalid UTF-8 arrives as replacement characters", async () => {
  const at = await openPage(browser, server.url);
  const run = await at.send(String.raw`import sys
sys.stdout.buffer.write(b"before \xff\xfe after\n")`);
  await at.phase(run, "completed");
  assert.equal(await at.text(run), "before \ufffd\ufffd after\n");
  await at.close();
});

test("a reply over a megabyte, in one line, is shown in pieces, cut at the limit and said to be", async () => {
  const at = await openPage(browser, server.url);
  await at.page.evaluate(() => {
    globalThis.longestTask = 0;
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) globalThis.longestTask = Math.max(globalThis.longestTask, entry.duration);
    }).observe({ entryTypes: ["longtask"] });
  });
  const run = await at.send('print("0123456789abcdef" * 70000)');
  await at.phase(run, "completed");
  const text = await at.text(run);
  assert.equal(text.length, 1 << 20);
  assert.equal(text, "0123456789abcdef".repeat(1 << 16));
  await run.getByText("What came after this point was dropped.").waitFor();
  const longest = await run.locator(".reply").evaluate((node) =>
    Math.max(...[...node.children].map((block) => block.textContent.length)));
  assert.ok(longest <= 32_768, `one block of ${longest} characters`);
  // The box still answers, and the end of the reply is in sight.
  await at.box.fill("still here");
  await at.page.waitForFunction(() => {
    const log = document.querySelector("#log");
    return log.scrollHeight - log.scrollTop - log.clientHeight < 2;
  });
  const longestTask = await at.page.evaluate(() => globalThis.longestTask);
  assert.ok(longestTask < 1_000, `the page stood still for ${longestTask} ms`);
  await at.close();
});

test("combining marks and wide text stay inside the reply", async () => {
  const at = await openPage(browser, server.url, { viewport: { width: 360, height: 740 } });
  const run = await at.send(String.raw`print("Z" + "\u0335\u0353\u035a\u0301" * 200)
print("W" * 2000)`);
  await at.phase(run, "completed");
  assert.equal(await at.page.evaluate(() => document.documentElement.scrollWidth), 360);
  assert.match(await at.reply(run).evaluate((node) => getComputedStyle(node).contain), /paint/);
  await at.close();
});

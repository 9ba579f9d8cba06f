// One headless Chromium for a test file, and pages that fail the test on any script error, console error or
// violation of the content security policy that it did not announce.

import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { chromium } from "playwright-core";

const ARTIFACTS = join(import.meta.dirname, "../artifacts");
const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];
/** A cold container on a busy machine of two cores is slow; nothing here waits longer than it must. */
const PATIENCE_MS = 30_000;

/** Launches the browser. Every context of it is a fresh profile. */
export async function startBrowser() {
  await mkdir(ARTIFACTS, { recursive: true });
  return chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: FLAGS });
}

/**
 * Opens the page in a context of its own. `options` go to the context; `expected` are patterns of console
 * errors and violations that belong to the test (a server that was killed). Returns the page object below.
 */
export async function openPage(browser, url, { expected = [], path = "/", ...options } = {}) {
  const context = await browser.newContext({ locale: "en-US", viewport: { width: 1280, height: 800 }, ...options });
  context.setDefaultTimeout(PATIENCE_MS);
  const wrongs = [];
  const note = (what, text = what) => {
    if (!expected.some((pattern) => pattern.test(text))) wrongs.push(what);
  };
  await context.exposeBinding("reportViolation", (_, what) => note(what));
  await context.addInitScript(() => {
    addEventListener("securitypolicyviolation", (event) => {
      globalThis.reportViolation(`CSP: ${event.violatedDirective} ${event.blockedURI}`);
    });
  });
  const page = await context.newPage();
  page.on("pageerror", (error) => wrongs.push(`script error: ${error.stack ?? error}`));
  page.on("console", (message) => {
    if (message.type() !== "error" && message.type() !== "warning") return;
    note(`console: ${message.text()}`, message.text());
  });
  page.on("dialog", (dialog) => {
    wrongs.push(`dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  await page.goto(url + path);
  return new Quayside(page, wrongs, expected);
}

/** What a person does on the page. */
export class Quayside {
  constructor(page, wrongs, expected) {
    this.page = page;
    this.wrongs = wrongs;
    this.expected = expected;
    this.box = page.locator("#message");
    this.runs = page.locator("article.run");
  }

  /** Types a message and sends it with Enter; waits until the server has accepted it. */
  async send(message) {
    const before = await this.runs.count();
    await this.box.fill(message);
    await this.box.press("Enter");
    await this.page.waitForFunction((n) => document.querySelectorAll("article.run").length > n, before);
    return this.run(before);
  }

  /** The n-th run of the open conversation, from 0. */
  run(n) {
    return this.runs.nth(n);
  }

  /** Waits until a run shows one of these phases. */
  async phase(run, ...phases) {
    const selector = phases.map((phase) => `[data-phase="${phase}"]`).join(", ");
    await run.and(this.page.locator(selector)).waitFor();
  }

  reply(run) {
    return run.locator(".reply");
  }

  /** The reply as the page holds it, independent of layout. */
  text(run) {
    return this.reply(run).evaluate((node) => node.textContent);
  }

  /** Waits until the list shows so many conversations. */
  async listed(count) {
    await this.page.waitForFunction((n) => document.querySelectorAll("#conversations li").length === n, count);
  }

  userId() {
    return this.page.evaluate(() => localStorage.getItem("quayside.userId"));
  }

  async screenshot(name) {
    await this.page.screenshot({ path: join(ARTIFACTS, `${name}.png`) });
  }

  /** Ends the visit; fails when anything went wrong that the test did not expect. */
  async close() {
    await this.page.context().close();
    assert.deepEqual(this.wrongs, []);
  }
}

/** A program that prints `count` numbered lines, `pause` seconds apart, and what it prints in all. */
export function counting(count, pause) {
  return {
    message: `import time\nfor n in range(1, ${count + 1}):\n    print("line", n, flush=True)\n    time.sleep(${pause})`,
    output: Array.from({ length: count }, (_, n) => `line ${n + 1}\n`).join(""),
  };
}

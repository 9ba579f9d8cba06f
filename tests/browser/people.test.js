// The page for different people: languages, themes, a narrow screen, the keyboard alone, input methods, and
// what axe says about it.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import axe from "axe-core";
import { openPage, startBrowser } from "./support/browser.js";
import { clientOf, startServer } from "./support/server.js";

const SLOW = "import time\nprint('started', flush=True)\ntime.sleep(60)";

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

test("Korean readers get Korean, may switch, and the choice is remembered", async () => {
  const at = await openPage(browser, server.url, { locale: "ko-KR" });
  const lang = () => at.page.evaluate(() => document.documentElement.lang);
  assert.equal(await lang(), "ko");
  await at.page.getByRole("heading", { name: "메시지를 보내고 실행을 지켜보세요" }).waitFor();
  const first = await at.send(SLOW);
  const second = await at.send("print(1)");
  await second.getByText("대기 중 · 이 대화의 앞선 메시지가 아직 실행 중입니다 · 대기 순서 1번").waitFor();
  await at.screenshot("queued-korean-light");
  await at.page.getByRole("button", { name: "English" }).click();
  assert.equal(await lang(), "en");
  await second.getByText("Waiting · an earlier message of this conversation is still running · number 1 in line").waitFor();
  await at.page.reload();
  assert.equal(await lang(), "en");
  await at.page.getByRole("button", { name: "한국어" }).click();
  await first.getByRole("button", { name: "이 실행 취소" }).click();
  await at.phase(second, "completed");
  await at.close();
});

test("readers of other languages get English", async () => {
  const at = await openPage(browser, server.url, { locale: "fr-FR" });
  assert.equal(await at.page.evaluate(() => document.documentElement.lang), "en");
  await at.page.getByRole("heading", { name: "Send a message, watch it run" }).waitFor();
  await at.close();
});

test("the theme follows the system, can be chosen, and is there before the first paint", async () => {
  const at = await openPage(browser, server.url, { colorScheme: "dark" });
  const ground = () => at.page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const dark = await ground();
  await at.page.emulateMedia({ colorScheme: "light" });
  const light = await ground();
  assert.notEqual(dark, light);
  await at.page.getByRole("button", { name: "Dark theme" }).click();
  assert.equal(await ground(), dark);
  await at.page.reload({ waitUntil: "commit" });
  await at.page.waitForFunction(() => document.body !== null);
  assert.equal(await at.page.evaluate(() => document.documentElement.dataset.theme), "dark");
  await at.page.waitForLoadState("load");
  await at.page.getByRole("button", { name: "Settings" }).click();
  await at.page.getByText("Like the system").click();
  assert.equal(await ground(), light);
  await at.close();
});

test("on a narrow screen the list is a drawer that takes the keyboard while it is open", async () => {
  const at = await openPage(browser, server.url, { viewport: { width: 360, height: 740 } });
  const run = await at.send('print("a line that is quite a bit longer than three hundred and sixty pixels are wide")');
  await at.phase(run, "completed");
  assert.equal(await at.page.evaluate(() => document.documentElement.scrollWidth), 360);
  await at.screenshot("narrow-light");
  const opener = at.page.getByRole("button", { name: "Open the list of conversations" });
  assert.equal(await opener.getAttribute("aria-expanded"), "false");
  assert.equal(await at.page.getByRole("navigation").isVisible(), false);
  await opener.press("Enter");
  assert.equal(await opener.getAttribute("aria-expanded"), "true");
  const focused = () => at.page.evaluate(() => document.activeElement.id);
  assert.equal(await focused(), "side-close");
  for (let n = 0; n < 12; n += 1) {
    await at.page.keyboard.press("Tab");
    assert.equal(await at.page.evaluate(() => document.activeElement.closest("#main")), null, "the focus went behind the drawer");
  }
  await at.page.locator("#side-close").focus();
  await at.page.keyboard.press("Escape");
  assert.equal(await focused(), "side-open");
  await opener.press("Enter");
  await at.page.locator(".row-link").first().press("Enter");
  await at.page.getByRole("navigation").waitFor({ state: "hidden" });
  await at.close();
});

test("the keyboard alone reaches everything, sends, cancels and deletes", async () => {
  const at = await openPage(browser, server.url);
  const { keyboard } = at.page;
  await keyboard.type(SLOW.replaceAll("\n", "; ")); // the box has the focus from the start
  await keyboard.press("Enter");
  await at.phase(at.run(0), "streaming");
  await keyboard.type("print(2)");
  await keyboard.press("Shift+Enter");
  await keyboard.type("print(3)");
  await keyboard.press("Enter");
  await at.phase(at.run(1), "queued");

  const where = () => at.page.evaluate(() => {
    const node = document.activeElement;
    const style = getComputedStyle(node.id === "message" ? node.closest(".box") : node);
    const name = node.id || node.className;
    return { name, visible: style.outlineStyle !== "none" || style.boxShadow !== "none" };
  });
  const seen = [];
  for (await at.page.locator("#skip").focus(); seen.length < 20; await keyboard.press("Tab")) {
    const { name, visible } = await where();
    assert.ok(visible, `the focus on ${name} cannot be seen`);
    seen.push(name);
    if (name === "send") break;
  }
  assert.deepEqual(seen, ["skip", "brand", "new", "row-link", "plain square row-delete", "language", "theme",
    "settings-open", "delete", "log", "run-cancel", "run-cancel", "message", "send"]);

  await at.page.locator("#skip").focus();
  await keyboard.press("Enter");
  assert.equal((await where()).name, "message");
  await keyboard.press("Shift+Tab");
  await keyboard.press("Shift+Tab");
  assert.equal((await where()).name, "run-cancel");
  await keyboard.press("Enter");
  await at.phase(at.run(0), "cancelled");
  assert.equal((await where()).name, "run", "the focus was lost with the button");
  await at.phase(at.run(1), "completed");
  assert.equal(await at.text(at.run(1)), "2\n3\n");

  const row = at.page.getByRole("button", { name: /^Delete “import time/ }).first();
  await row.focus();
  await keyboard.press("Enter");
  const dialog = at.page.getByRole("dialog", { name: "Delete this conversation?" });
  await dialog.waitFor();
  assert.equal((await where()).name, "confirm-no");
  await keyboard.press("Escape");
  await dialog.waitFor({ state: "hidden" });
  assert.equal((await where()).name, "plain square row-delete");
  await keyboard.press("Enter");
  await keyboard.press("Tab");
  await keyboard.press("Enter");
  await dialog.waitFor({ state: "hidden" });
  await at.page.locator("#conversations li").waitFor({ state: "detached" });
  await at.page.getByRole("heading", { name: "Send a message, watch it run" }).waitFor();
  const { data } = await clientOf(server, await at.userId()).get("/api/conversations");
  assert.deepEqual(data, []);
  await at.close();
});

test("a confirmation asked for again at once still deletes", async () => {
  const at = await openPage(browser, server.url);
  await at.phase(await at.send("print(1)"), "completed");
  await at.page.locator("#delete").click();
  // The event of the first closing arrives when the dialog is open for the second time.
  await at.page.evaluate(() => {
    document.querySelector("#confirm").close();
    document.querySelector("#delete").click();
  });
  await at.page.getByRole("button", { name: "Delete", exact: true }).click();
  await at.listed(0);
  assert.equal(await at.page.locator("#confirm").isVisible(), false);
  await at.close();
});

test("a deletion that fails says why and leaves the conversation", async () => {
  const at = await openPage(browser, server.url, { expected: [/ERR_FAILED/] });
  await at.phase(await at.send("print(1)"), "completed");
  await at.page.route("**/api/conversations/*", (route) => route.abort("failed"), { times: 1 });
  await at.page.locator("#delete").click();
  await at.page.getByRole("button", { name: "Delete", exact: true }).click();
  await at.page.getByRole("alert").filter({ hasText: "The server did not answer." }).waitFor();
  await at.page.getByRole("button", { name: "Delete", exact: true }).click();
  await at.listed(0);
  await at.close();
});

test("the Enter that ends a composition does not send", async () => {
  const at = await openPage(browser, server.url, { locale: "ko-KR" });
  const input = await at.page.context().newCDPSession(at.page);
  await at.box.focus();
  await input.send("Input.insertText", { text: "# " });
  await input.send("Input.imeSetComposition", { text: "한글", selectionStart: 2, selectionEnd: 2 });
  await at.page.evaluate(() => {
    globalThis.enters = [];
    document.querySelector("#message").addEventListener("keydown", (event) => {
      if (event.key === "Enter") globalThis.enters.push(event.isComposing);
    });
  });
  await at.page.keyboard.press("Enter");
  assert.deepEqual(await at.page.evaluate(() => globalThis.enters), [true], "the browser did not compose");
  assert.equal(await at.runs.count(), 0);
  assert.equal(await at.page.locator("#composer").getAttribute("aria-busy"), "false");
  await input.send("Input.insertText", { text: "한글" });
  await at.page.keyboard.press("Enter");
  await at.phase(at.run(0), "completed");
  assert.match(await at.run(0).locator(".said").innerText(), /^# 한글/);
  await at.close();
});

test("conversations are opened from the list and from their address, and the focus goes along", async () => {
  const at = await openPage(browser, server.url);
  await at.phase(await at.send('print("first")'), "completed");
  const address = new URL(at.page.url()).hash;
  await at.page.getByRole("link", { name: "New conversation" }).click();
  await at.phase(await at.send('print("second")'), "completed");
  await at.listed(2);
  await at.page.locator(".row-link", { hasText: "first" }).press("Enter");
  await at.page.waitForFunction(() => document.activeElement.id === "title");
  assert.equal(await at.text(at.run(0)), "first\n");
  assert.equal(await at.runs.count(), 1);
  await at.page.goto(`${server.url}/${address}`);
  await at.page.reload();
  await at.page.getByRole("heading", { level: 1, name: 'print("first")' }).waitFor();
  await at.page.locator('.row-link[aria-current="page"]', { hasText: 'print("first")' }).waitFor();
  await at.close();
});

test("another user id sees other conversations, and a wrong one is refused where it is typed", async () => {
  const at = await openPage(browser, server.url, { expected: [/status of 404/] });
  const mine = await at.userId();
  assert.match(mine, /^web-[0-9A-Za-z]{22}$/);
  await at.phase(await at.send('print("mine")'), "completed");
  const address = at.page.url();
  const settings = at.page.getByRole("dialog", { name: "Settings" });
  const use = async (id) => {
    await at.page.getByRole("button", { name: "Settings" }).click();
    await settings.getByLabel("User id").fill(id);
    await settings.getByRole("button", { name: "Use this id" }).click();
  };
  await use("not an id");
  await settings.getByText("1 to 128 letters").waitFor();
  assert.equal(await at.userId(), mine);
  await at.page.keyboard.press("Escape");
  await use("somebody-else");
  await at.page.getByText("Nothing here yet.").waitFor();
  await at.page.goto(address);
  await at.page.getByText("There is no such conversation here.").waitFor();
  await use(mine);
  await at.page.locator(".row-link", { hasText: "mine" }).waitFor();
  await at.close();
});

test("with one agent there is nothing to choose", async () => {
  const at = await openPage(browser, server.url);
  await at.phase(await at.send("1"), "completed");
  assert.equal(await at.page.locator("#agent").isVisible(), false);
  await at.close();
});

for (const colorScheme of ["light", "dark"]) {
  test(`axe finds nothing serious in the ${colorScheme} theme`, async () => {
    const at = await openPage(browser, server.url, { colorScheme, reducedMotion: "reduce" });
    const check = async (what) => {
      await at.page.evaluate(axe.source);
      const { violations } = await at.page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
      const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
      assert.deepEqual(serious.map(({ id, nodes }) => `${what}: ${id} ${nodes.map(({ html }) => html).join(" ")}`), []);
    };
    await at.page.getByRole("heading", { name: "Send a message, watch it run" }).waitFor();
    await check("first run");
    await at.screenshot(`first-run-${colorScheme}`);
    await at.phase(await at.send("print('done')"), "completed");
    await at.phase(await at.send("raise SystemExit(1)"), "failed");
    const running = await at.send(SLOW);
    await at.phase(running, "streaming");
    const waiting = await at.send("print(1)");
    await at.phase(waiting, "queued");
    await check("conversation");
    await at.screenshot(`conversation-${colorScheme}`);
    await at.page.getByRole("button", { name: "Settings" }).click();
    await check("settings");
    await at.screenshot(`settings-${colorScheme}`);
    await at.page.keyboard.press("Escape");
    await at.page.locator("#delete").click();
    await check("confirmation");
    await at.page.keyboard.press("Escape");
    await at.page.setViewportSize({ width: 360, height: 740 });
    await at.page.getByRole("button", { name: "Open the list of conversations" }).click();
    await check("drawer");
    await at.screenshot(`drawer-${colorScheme}`);
    await at.page.keyboard.press("Escape");
    await running.getByRole("button", { name: "Cancel this run" }).click();
    await at.phase(waiting, "completed");
    await at.close();
  });
}

// Signing in, against Firebase's Auth emulator: the server takes tokens and runs on one machine, so the page reads its
// event streams with the token.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { startFirebase } from "../rules/support/emulators.js";
import { counting, openPage, startBrowser } from "./support/browser.js";
import { makeAccount, openGate, PASSWORD } from "./support/google.js";
import { clientWith, startServer } from "./support/server.js";

const PROJECT = "demo-signin";
/** What the browser says of an answer that the test provokes. */
const REFUSED = [/Failed to load resource: the server responded with a status of 400/];

let firebase;
let server;
let browser;
const accounts = {};

const google = (more = {}) => ({ project_id: PROJECT, firebase_sdk: firebase.sdk, ...more });

before(async () => {
  firebase = await startFirebase(PROJECT);
  server = await startServer({ auth: "tokens", google: google(), env: { FIREBASE_AUTH_EMULATOR_HOST: firebase.auth } });
  browser = await startBrowser();
  for (const name of ["ada", "eve"]) accounts[name] = await makeAccount(firebase, `${name}@example.org`);
});

after(async () => {
  await browser?.close();
  await server?.stop();
  await firebase?.stop();
});

test("somebody new creates an account, sends, and watches the reply", async () => {
  const at = await openGate(browser, server.url);
  await at.gate.getByRole("heading", { name: "Sign in", exact: true }).waitFor();
  assert.equal(await at.page.locator("#frame").isVisible(), false, "nothing of the page behind is there");
  await at.screenshot("sign-in-light");
  await at.gate.getByRole("button", { name: "Create an account" }).click();
  await at.gate.getByRole("heading", { name: "Create an account" }).waitFor();
  await at.email.fill("new@example.org");
  await at.password.fill(PASSWORD);
  await at.gate.getByRole("button", { name: "Create account" }).click();
  await at.box.waitFor();
  const { message, output } = counting(4, 0.3);
  const run = await at.send(message);
  await at.phase(run, "streaming");
  await at.phase(run, "completed");
  assert.equal(await at.text(run), output);
  // The stream is asked for with the token, and an id that the page might make up is nowhere.
  assert.equal(await at.userId(), null);
  await at.close();
});

test("a reload stays signed in and comes back to the conversation", async () => {
  const at = await openGate(browser, server.url);
  await at.signIn(accounts.ada.email);
  const { message, output } = counting(12, 0.3);
  const run = await at.send(message);
  await at.phase(run, "streaming");
  await at.page.reload();
  await at.phase(at.run(0), "completed");
  assert.equal(await at.text(at.run(0)), output);
  assert.equal(await at.page.locator("#side .account-name").innerText(), accounts.ada.email);
  await at.screenshot("signed-in-light");
  const { data } = await clientWith(server, { Authorization: `Bearer ${accounts.ada.token}` }).get("/api/conversations");
  assert.equal(data.length, 1, "the run is the account's");
  await at.close();
});

test("signing out forgets everything, and the next one sees nothing of it", async () => {
  const at = await openGate(browser, server.url);
  await at.signIn(accounts.ada.email);
  const run = await at.send('print("of ada alone")');
  await at.phase(run, "completed");
  const address = at.page.url();
  await at.box.fill("half a thought of ada");
  await at.page.getByRole("button", { name: "Settings" }).click();
  const settings = at.page.locator("#settings");
  await settings.getByText("Signed in as").waitFor();
  assert.equal(await settings.getByLabel("User id").isVisible(), false);
  await at.screenshot("settings-signed-in-light");
  await settings.getByRole("button", { name: "Sign out" }).click();
  await at.page.locator("#gate-form").waitFor();
  assert.doesNotMatch(await at.page.evaluate(() => document.body.textContent + JSON.stringify({ ...sessionStorage, ...localStorage })), /of ada/);
  assert.ok(at.page.url().endsWith("#/"));
  // The address of a stranger's conversation opens nothing.
  await at.signIn(accounts.eve.email);
  await at.listed(0);
  assert.equal(await at.box.inputValue(), "");
  at.expected.push(/status of 404/);
  await at.page.goto(address);
  await at.page.getByText("There is no such conversation here.").waitFor();
  assert.equal(await at.runs.count(), 0);
  await at.close();
});

test("signing out in one tab signs the other one out", async () => {
  const at = await openGate(browser, server.url);
  await at.signIn(accounts.ada.email);
  const other = await at.page.context().newPage();
  await other.goto(server.url);
  await other.locator("#message").waitFor();
  await at.page.locator("#side").getByRole("button", { name: "Sign out" }).click();
  await other.locator("#gate-form").waitFor();
  await at.close();
});

test("what is wrong is said in words, at the field it is about", async () => {
  const at = await openGate(browser, server.url, { expected: REFUSED });
  const submit = at.gate.locator("#gate-submit");
  const says = (words) => at.gate.getByRole("alert").getByText(words).waitFor();
  const focused = () => at.page.evaluate(() => document.activeElement.id);
  await submit.click();
  await says("This is not an email address.");
  assert.equal(await focused(), "gate-email");
  await at.email.fill("nobody@example.org");
  await submit.click();
  await says("Type your password.");
  assert.equal(await focused(), "gate-password");
  await at.password.fill("wrong password");
  await at.password.press("Enter");
  await says("Email and password do not fit together, or there is no such account.");
  assert.equal(await at.password.getAttribute("aria-invalid"), "true");
  await at.screenshot("sign-in-wrong-light");
  await at.email.fill(accounts.ada.email);
  await at.password.press("Enter");
  await says("Email and password do not fit together, or there is no such account.");
  await at.gate.getByRole("button", { name: "Create an account" }).click();
  assert.equal(await at.gate.getByRole("alert").count(), 0);
  await submit.click();
  await says("There is an account with this email already.");
  await at.email.fill("short@example.org");
  await at.password.fill("abc");
  await submit.click();
  await says("This password is too short");
  await at.gate.getByRole("button", { name: "I have an account" }).click();
  await at.email.fill(accounts.ada.email);
  await at.gate.getByRole("button", { name: "Forgot your password?" }).click();
  await at.gate.getByText(`If ${accounts.ada.email} has an account here`).waitFor();
  await at.close();
});

test("the sign-in speaks Korean, follows the theme and needs only the keyboard", async () => {
  const at = await openGate(browser, server.url, { locale: "ko-KR", colorScheme: "dark" });
  await at.gate.getByRole("heading", { name: "로그인", exact: true }).waitFor();
  assert.equal(await at.page.evaluate(() => document.activeElement.id), "gate-email");
  await at.screenshot("sign-in-korean-dark");
  const words = await at.gate.innerText();
  assert.doesNotMatch(words.replaceAll(/Quayside|English/g, ""), /[A-Za-z]{3}/, words);
  await at.page.keyboard.type(accounts.ada.email);
  await at.page.keyboard.press("Tab");
  await at.page.keyboard.type(PASSWORD);
  await at.page.keyboard.press("Tab");
  assert.equal(await at.page.evaluate(() => document.activeElement.id), "gate-submit");
  await at.page.keyboard.press("Enter");
  await at.box.waitFor();
  await at.page.getByRole("button", { name: "로그아웃" }).first().waitFor();
  await at.close();
});

test("language and theme can be changed before signing in, and stay", async () => {
  const at = await openGate(browser, server.url);
  await at.gate.getByRole("button", { name: "한국어" }).click();
  await at.gate.getByRole("heading", { name: "로그인", exact: true }).waitFor();
  await at.gate.getByRole("button", { name: "어두운 테마" }).click();
  assert.equal(await at.page.evaluate(() => document.documentElement.dataset.theme), "dark");
  await at.signIn(accounts.ada.email);
  await at.page.locator("#side").getByRole("button", { name: "밝은 테마" }).waitFor();
  await at.close();
});

test("a token that the server does not take any more is said in words", async () => {
  const at = await openGate(browser, server.url, { expected: [/status of 401/] });
  await at.signIn(accounts.ada.email);
  await at.page.route("**/api/**", (route) => route.continue({ headers: { ...route.request().headers(), authorization: "Bearer forged" } }));
  await at.box.fill("print(1)");
  await at.box.press("Enter");
  await at.page.getByRole("alert").getByText("Your sign-in is not accepted any more.").waitFor();
  await at.close();
});

test("a token that only looks good is exchanged for a fresh one", async () => {
  const at = await openGate(browser, server.url, { expected: [/status of 401/] });
  await at.signIn(accounts.ada.email);
  let refused = 0;
  let refreshed = 0;
  at.page.on("request", (request) => {
    if (/securetoken.*\/token/.test(request.url()) && request.method() === "POST") refreshed += 1;
  });
  await at.page.route("**/api/conversation", (route) => {
    refused += 1;
    return route.continue({ headers: { ...route.request().headers(), authorization: "Bearer late" } });
  }, { times: 1 });
  await at.phase(await at.send('print("with the second")'), "completed");
  assert.deepEqual([refused, refreshed], [1, 1]);
  await at.close();
});

test("axe finds nothing serious where people sign in", async () => {
  const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
  for (const colorScheme of ["light", "dark"]) {
    const at = await openGate(browser, server.url, { colorScheme, expected: REFUSED });
    await at.email.fill("nobody@example.org");
    await at.password.fill("wrong password");
    await at.password.press("Enter");
    await at.gate.getByRole("alert").waitFor();
    await at.page.evaluate(axe);
    const check = () => at.page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
    const serious = ({ violations }) => violations.filter(({ impact }) => ["serious", "critical"].includes(impact))
      .map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`);
    assert.deepEqual(serious(await check()), []);
    await at.signIn(accounts.ada.email);
    await at.listed(await at.page.locator("#conversations li").count());
    assert.deepEqual(serious(await check()), []);
    await at.close();
  }
});

test("on a narrow screen the sign-in fits, and the drawer says who is signed in", async () => {
  const at = await openGate(browser, server.url, { viewport: { width: 360, height: 640 }, reducedMotion: "reduce" });
  await at.screenshot("sign-in-narrow-light");
  assert.equal(await at.page.evaluate(() => document.documentElement.scrollWidth), 360);
  await at.signIn(accounts.ada.email);
  await at.page.getByRole("button", { name: "Open the list of conversations" }).click();
  const side = at.page.locator("#side");
  await side.getByText(accounts.ada.email).waitFor();
  await at.screenshot("drawer-signed-in-light");
  await side.getByRole("button", { name: "Sign out" }).click();
  await at.page.locator("#gate-form").waitFor();
  await at.close();
});

test("without Firebase's key the page says what whoever runs it has to set", async () => {
  const bare = await startServer({ auth: "tokens", google: google(), ready: "/livez" });
  try {
    const at = await openPage(browser, bare.url);
    await at.page.getByRole("heading", { name: "Nobody can sign in here yet" }).waitFor();
    await at.page.getByText("Set firebase_api_key in the [google] section").waitFor();
    assert.equal(await at.page.locator("#gate-form").isVisible(), false);
    await at.screenshot("sign-in-setup-light");
    await at.page.getByRole("button", { name: "한국어" }).click();
    await at.page.getByRole("heading", { name: "아직 아무도 로그인할 수 없습니다" }).waitFor();
    await at.close();
  } finally {
    await bare.stop();
  }
});

test("a sign-in that cannot be loaded says so and can be tried again", async () => {
  const at = await openPage(browser, server.url, { path: "/docs/", expected: [/ERR_FAILED/] });
  await at.page.route(`${firebase.sdk}/**`, (route) => route.abort("failed"));
  await at.page.goto(server.url);
  await at.page.getByText(`The sign-in could not be loaded from ${new URL(firebase.sdk).host}.`).waitFor();
  await at.page.unroute(`${firebase.sdk}/**`);
  await at.page.getByRole("button", { name: "Try again" }).click();
  await at.page.locator("#gate-form").waitFor();
  await at.close();
});

test("sign-in with Google is offered where it was set up, and says when Google does not answer", async () => {
  const offering = await startServer({
    auth: "tokens", google: google({ firebase_auth_domain: "demo-signin.firebaseapp.com" }), env: { FIREBASE_AUTH_EMULATOR_HOST: firebase.auth },
  });
  try {
    const at = await openGate(browser, offering.url, { expected: [/apis\.google\.com/, /ERR_/] });
    let asked = 0;
    await at.page.route("https://apis.google.com/**", (route) => {
      asked += 1;
      return route.abort("failed");
    });
    await at.screenshot("sign-in-google-light");
    await at.gate.getByRole("button", { name: "Continue with Google" }).click();
    await at.gate.getByRole("alert").waitFor();
    assert.match(await at.gate.getByRole("alert").innerText(), /The sign-in did not answer|Signing in did not work/);
    assert.ok(asked > 0, "the policy lets Google's script through");
    await at.close();
  } finally {
    await offering.stop();
  }
});

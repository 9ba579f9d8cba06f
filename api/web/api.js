// The HTTP contract, one function a route. Every failure is thrown as a Problem: either the server's
// problem+json answer or `network` when no answer came.

import { headers } from "./identity.js";
import { usesTokens } from "./session.js";

/** How long an ordinary request may take before it counts as a lost connection. */
const PATIENCE_MS = 30_000;

/** Why a request failed. `status` is 0 and `code` is "network" when the server was not reached. */
export class Problem extends Error {
  constructor({ status = 0, code = "network", detail = "", fields = [], retryAfterSeconds = null }) {
    super(`${status} ${code}${detail ? `: ${detail}` : ""}`);
    this.name = "Problem";
    Object.assign(this, { status, code, detail, fields, retryAfterSeconds });
  }
}

/** Seconds from a Retry-After header: a number or an HTTP date. Null when there is none. */
export function retryAfterSeconds(value, now = Date.now()) {
  if (value === null || value === "") return null;
  if (/^\d+$/.test(value.trim())) return Number(value);
  const date = Date.parse(value);
  return Number.isNaN(date) ? null : Math.max(0, Math.ceil((date - now) / 1000));
}

/** The names of the request fields that a problem document complains about. */
function fieldsOf(body) {
  const listed = Array.isArray(body.errors) ? body.errors : [];
  const names = [body.field, ...listed.map((entry) => entry?.field ?? entry?.pointer)];
  return names.filter((name) => typeof name === "string" && name !== "");
}

async function problemOf(response) {
  let body = {};
  try {
    body = (await response.json()) ?? {};
  } catch {
    // A proxy's HTML page or nothing at all: the status has to speak for itself.
  }
  return new Problem({
    status: response.status,
    code: typeof body.code === "string" ? body.code : "",
    detail: typeof body.detail === "string" ? body.detail : "",
    fields: fieldsOf(body),
    retryAfterSeconds: retryAfterSeconds(response.headers.get("Retry-After")),
  });
}

async function request(path, { method = "GET", body, extra = {}, signal } = {}) {
  const send = async (fresh) => {
    const init = { method, headers: { Accept: "application/json", ...(await headers(fresh)), ...extra }, cache: "no-store", signal };
    if (body !== undefined) {
      init.headers["Content-Type"] = "application/json";
      init.body = JSON.stringify(body);
    }
    return fetch(path, init);
  };
  let response;
  try {
    response = await send(false);
    // On a machine whose clock is slow a token looks good here that is over for the server.
    if (response.status === 401 && usesTokens) response = await send(true);
  } catch (error) {
    throw new Problem({ detail: String(error?.message ?? error) });
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function json(path, options = {}) {
  const response = await request(path, { signal: AbortSignal.timeout(PATIENCE_MS), ...options });
  if (response.status === 204) return null;
  try {
    return await response.json();
  } catch (error) {
    throw new Problem({ detail: String(error?.message ?? error) });
  }
}

const id = encodeURIComponent;
const page = (after, limit) => `?limit=${limit}${after ? `&after=${id(after)}` : ""}`;

/** Accepts a message. The same key with the same body never makes a second run. */
export const submit = (body, idempotencyKey) =>
  json("/api/conversation", { method: "POST", body, extra: { "Idempotency-Key": idempotencyKey } });

export const readRun = (runId) => json(`/api/runs/${id(runId)}`);
export const cancelRun = (runId) => json(`/api/runs/${id(runId)}/cancel`, { method: "POST" });

export const listConversations = (after, limit = 30) => json(`/api/conversations${page(after, limit)}`);
export const readConversation = (conversationId) => json(`/api/conversations/${id(conversationId)}`);
export const listRuns = (conversationId, after, limit = 50) =>
  json(`/api/conversations/${id(conversationId)}/runs${page(after, limit)}`);
export const deleteConversation = (conversationId) =>
  json(`/api/conversations/${id(conversationId)}`, { method: "DELETE" });

export const listAgents = () => json("/api/agents");

/** The event stream of a run as a Response (204: nothing more will come). No time limit: the follower keeps one. */
export const openEvents = (runId, lastEventId, signal) =>
  request(`/api/runs/${id(runId)}/events`, {
    extra: { Accept: "text/event-stream", ...(lastEventId ? { "Last-Event-ID": lastEventId } : {}) },
    signal,
  });

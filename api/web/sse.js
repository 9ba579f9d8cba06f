// A parser for Server-Sent Events (the WHATWG algorithm). EventSource itself cannot send the identity
// header, so the page reads the stream with fetch and feeds the decoded text in here.

/**
 * Returns `{feed(text), lastEventId}`. `feed` takes text in pieces of any size and calls
 * `onEvent({id, event, data})` for every complete event; comments and unknown fields are skipped.
 */
export function createParser(onEvent) {
  let pieces = [];      // the unfinished line, not joined until its end is seen: a 1 MiB line stays linear
  let data = [];
  let event = "";
  let id = "";
  let started = false;
  let afterCarriageReturn = false;
  const parser = { lastEventId: "", feed };

  function feed(text) {
    let from = 0;
    if (!started && text.length > 0) {
      started = true;
      if (text.charCodeAt(0) === 0xfeff) from = 1;
    }
    if (afterCarriageReturn && from < text.length) {
      if (text.charCodeAt(from) === 10) from += 1;
      afterCarriageReturn = false;
    }
    const end = /\r\n|\r|\n/g;
    end.lastIndex = from;
    for (let match = end.exec(text); match !== null; match = end.exec(text)) {
      pieces.push(text.slice(from, match.index));
      const whole = pieces.length === 1 ? pieces[0] : pieces.join("");
      pieces = [];
      from = end.lastIndex;
      // A CR that ends this piece may be the first half of CRLF: the LF then belongs to this line.
      afterCarriageReturn = match[0] === "\r" && from === text.length;
      line(whole);
    }
    if (from < text.length) pieces.push(text.slice(from));
  }

  function line(text) {
    if (text === "") return dispatch();
    const colon = text.indexOf(":");
    if (colon === 0) return undefined;
    const name = colon === -1 ? text : text.slice(0, colon);
    let value = colon === -1 ? "" : text.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (name === "data") data.push(value);
    else if (name === "event") event = value;
    else if (name === "id" && !value.includes("\0")) id = value;
    return undefined;
  }

  function dispatch() {
    parser.lastEventId = id;
    const complete = { id, event: event || "message", data: data.join("\n") };
    const empty = data.length === 0;
    data = [];
    event = "";
    if (!empty) onEvent(complete);
  }

  return parser;
}

// Text from strangers (what an agent printed, what a user typed) on its way to the screen. It only ever
// becomes text nodes; what could deceive or disturb a reader is made visible, and a reply of a megabyte is
// appended in blocks so that the browser never lays out again what it has laid out already.

/** A block is closed at the first line end after this many characters ... */
const BLOCK_CHARS = 4_096;
/** ... and at the latest here: a line this long is cut on the screen, or a line of a megabyte freezes the page. */
const LONGEST_BLOCK_CHARS = 32_768;

const C0 = /[\u0000-\u0008\u000b-\u001f\u007f]/g;
const C1 = /[\u0080-\u009f]/g;
// Embeddings, overrides and isolates: characters that change the order in which their neighbours are read.
const REORDERING = /[\u202a-\u202e\u2066-\u2069]/g;

/** The same text with control characters as symbols and reordering characters by their number. */
export function harmless(text) {
  return text
    .replace(/\r\n/g, "\n")
    .replace(C0, (c) => (c === "\u007f" ? "\u2421" : String.fromCharCode(0x2400 + c.charCodeAt(0))))
    .replace(C1, "\u2426")
    .replace(REORDERING, (c) => `\u27e8U+${c.charCodeAt(0).toString(16).toUpperCase()}\u27e9`);
}

/** Shows a growing text inside `node`, which must be styled `white-space: pre-wrap`. */
export class TextPane {
  #node;
  #onGrow;
  #waiting = [];
  #frame = 0;
  #carry = "";
  #block = null;  // the text node that grows

  /** `onGrow` is called after text was put on the screen. */
  constructor(node, onGrow = () => {}) {
    this.#node = node;
    this.#onGrow = onGrow;
  }

  /** Adds text; it is on the screen with the next frame. */
  append(text) {
    this.#waiting.push(text);
    if (this.#frame === 0) this.#frame = requestAnimationFrame(() => this.flush());
  }

  /** Replaces everything. */
  reset(text = "") {
    this.#waiting = [];
    this.#carry = "";
    this.#block = null;
    this.#node.replaceChildren();
    if (text !== "") this.append(text);
  }

  /** Nothing more comes: shows what was held back. */
  end() {
    this.flush();
    if (this.#carry !== "") this.#put(harmless(this.#carry));
    this.#carry = "";
  }

  /** Puts what is waiting on the screen now. */
  flush() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    if (this.#waiting.length === 0) return;
    let text = this.#carry + this.#waiting.join("");
    this.#waiting = [];
    // A CR at the end may be the first half of CRLF.
    this.#carry = text.endsWith("\r") ? "\r" : "";
    if (this.#carry !== "") text = text.slice(0, -1);
    this.#put(harmless(text));
    this.#onGrow();
  }

  #put(text) {
    for (let from = 0; from < text.length; ) {
      if (this.#block === null) this.#open();
      const newline = text.indexOf("\n", from + Math.max(0, BLOCK_CHARS - this.#block.length));
      const line = newline === -1 ? text.length : newline + 1;
      let to = Math.min(line, from + LONGEST_BLOCK_CHARS - this.#block.length);
      // Never between the halves of a surrogate pair.
      if (to < line && (text.charCodeAt(to - 1) & 0xfc00) === 0xd800) to += 1;
      this.#block.appendData(text.slice(from, to));
      if (to < line || newline !== -1) this.#block = null;
      from = to;
    }
  }

  #open() {
    this.#block = document.createTextNode("");
    const block = document.createElement("div");
    block.className = "text-block";
    block.dir = "auto";
    block.append(this.#block);
    this.#node.append(block);
  }
}

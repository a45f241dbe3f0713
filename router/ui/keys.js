// Keys: asked for when the router refuses, kept as long as the tab is open.

const KEY_NAMES = { admin: "Admin key", api: "API key" };
const SENDABLE = /^[\x21-\x7e]+$/;

/** The keys of this tab. Where a browser keeps nothing, they last until the page is left. */
const keyRing = {
  kept: new Map(),
  get(kind) {
    try {
      return sessionStorage.getItem(`mlxfleet.${kind}`);
    } catch {
      return this.kept.get(kind) ?? null;
    }
  },
  set(kind, key) {
    try {
      sessionStorage.setItem(`mlxfleet.${kind}`, key);
    } catch {
      this.kept.set(kind, key);
    }
  },
  any() {
    return Object.keys(KEY_NAMES).some((kind) => this.get(kind) !== null);
  },
  forget() {
    this.kept.clear();
    try {
      for (const kind of Object.keys(KEY_NAMES)) sessionStorage.removeItem(`mlxfleet.${kind}`);
    } catch {
      // Nothing was kept.
    }
  },
};

/**
 * A form that asks for a key and stands in the place of what the key opens. An eager one takes the
 * focus when it appears; after it, the focus is on the element `first`.
 */
class Gate {
  constructor(name, behind, { first, eager = false }) {
    this.form = byId(name);
    this.behind = behind;
    this.first = first;
    this.eager = eager;
    this.input = byId(`${name}-input`);
    this.error = byId(`${name}-error`);
    this.label = this.form.querySelector(".kind");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submitted();
    });
  }

  /** Resolves when a key was given and kept. */
  ask(kind, wrong) {
    const takesFocus = this.eager || this.behind.contains(document.activeElement);
    setText(this.label, KEY_NAMES[kind]);
    setText(this.error, wrong ? "The router does not accept this key." : "");
    this.kind = kind;
    this.behind.hidden = true;
    this.form.hidden = false;
    // What was typed meanwhile stays.
    if (this.input.value.trim() === keyRing.get(kind)) this.input.value = "";
    if (takesFocus) this.input.focus();
    return new Promise((resolve) => {
      this.given = resolve;
    });
  }

  submitted() {
    const key = this.input.value.trim();
    if (!SENDABLE.test(key)) {
      setText(this.error, "A key has no spaces and no accented letters.");
      return;
    }
    setText(this.error, "");
    keyRing.set(this.kind, key);
    this.given?.();
  }

  /** Show what is behind. */
  open() {
    const hadFocus = this.form.contains(document.activeElement);
    this.behind.hidden = false;
    this.form.hidden = true;
    if (hadFocus) this.first.focus();
  }
}

/** Requests that want the same key, of a kind that the router tells when it refuses one. */
class Client {
  constructor(gate) {
    this.gate = gate;
    this.kind = "api";
  }

  /** fetch() with the key; asks for one as often as it takes. `timeoutMs` limits each attempt. */
  async fetch(path, { timeoutMs, headers = {}, ...options } = {}) {
    for (;;) {
      const key = keyRing.get(this.kind);
      const sent = key === null ? headers : { ...headers, Authorization: `Bearer ${key}` };
      const limit = timeoutMs && { signal: AbortSignal.timeout(timeoutMs) };
      const request = { ...options, ...limit, headers: sent, credentials: "omit" };
      const response = await fetch(path, request);
      if (response.status !== 401) {
        this.gate.open();
        return response;
      }
      const refusal = await response.json();
      this.kind = refusal.error?.code === "invalid_admin_key" ? "admin" : "api";
      const other = keyRing.get(this.kind);
      if (other === null || other === key) await this.gate.ask(this.kind, other !== null);
    }
  }
}

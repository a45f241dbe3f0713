// Asks the router each second, as long as the page is looked at.

const POLL_MS = 1000;
const TIMEOUT_MS = 10_000;
const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 30_000;

/** Said once to those who listen to the page; not each change of a figure. */
function announce(text) {
  setText(byId("announcer"), text);
}

/** How the page and the router stand, and when the next try is. */
class Connection {
  constructor() {
    this.element = byId("connection");
    this.text = byId("connection-text");
    this.retry = byId("retry");
    this.failures = 0;
    this.wake = () => {};
    this.retry.addEventListener("click", () => this.wake());
    window.addEventListener("online", () => this.wake());
    document.addEventListener("visibilitychange", () => this.wake());
  }

  live() {
    if (this.failures > 0) announce("The router answers again");
    this.failures = 0;
    this.show("live", "Live");
  }

  gone(why) {
    this.failures += 1;
    this.why = why;
    if (this.failures === 1) announce(`${why}. Trying again.`);
  }

  show(state, text) {
    this.element.dataset.state = state;
    setText(this.text, text);
    this.retry.hidden = state !== "gone";
    byId("fleet").classList.toggle("stale", state === "gone");
  }

  /** Until the next poll: longer each time that the router was not there, and for as long as
   * nobody looks. */
  async pause() {
    const waits = this.failures > 0;
    const wait = waits ? Math.min(FIRST_WAIT_MS * 2 ** (this.failures - 1), LONGEST_WAIT_MS) : POLL_MS;
    const until = performance.now() + wait;
    let woken = false;
    while (!woken && (document.hidden || performance.now() < until)) {
      const left = until - performance.now();
      if (waits) this.show("gone", `${this.why}. Trying again in ${Math.max(Math.ceil(left / 1000), 0)} s`);
      woken = await this.sleep(document.hidden ? LONGEST_WAIT_MS : Math.min(left, 1000));
    }
  }

  /** Whether somebody wants the next poll at once. */
  sleep(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(() => resolve(false), ms);
      this.wake = () => {
        clearTimeout(timer);
        resolve(!document.hidden);
      };
    });
  }
}

/** Something answers, but not as a router does that can tell of its fleet. */
class OtherAnswer extends Error {}

/** A JSON answer of the router. */
async function get(client, path) {
  const response = await client.fetch(path, { timeoutMs: TIMEOUT_MS });
  if (!response.ok) throw new OtherAnswer(`The router answers with status ${response.status}`);
  return response.json();
}

function choosesTheme(select) {
  const root = document.documentElement;
  const show = () => {
    if (select.value) root.dataset.theme = select.value;
    else delete root.dataset.theme;
  };
  try {
    select.value = localStorage.getItem("mlxfleet.theme") ?? "";
  } catch {
    // This browser keeps nothing; the choice holds for this page.
  }
  show();
  select.addEventListener("change", () => {
    show();
    try {
      localStorage.setItem("mlxfleet.theme", select.value);
    } catch {
      // As above.
    }
  });
}

async function main() {
  choosesTheme(byId("theme"));
  const connection = new Connection();
  const nodesTitle = byId("nodes-title");
  nodesTitle.tabIndex = -1;
  const client = new Client(new Gate("fleet-key", byId("fleet"), { first: nodesTitle, eager: true }));
  const chatGate = new Gate("chat-key", byId("chat-form"), { first: byId("message") });
  const chat = new Chat(new Client(chatGate), { announce });
  const totals = new Totals(byId("totals"));
  const nodes = new Nodes(byId("nodes"), { note: byId("nodes-note"), empty: byId("no-nodes"), announce });
  const requests = new Requests(byId("requests"), { note: byId("requests-note"), empty: byId("no-requests") });
  const forget = byId("forget-keys");
  forget.addEventListener("click", () => {
    keyRing.forget();
    location.reload();
  });

  let modelsWanted = true;
  for (;;) {
    let fleet, running;
    try {
      fleet = await get(client, "/fleet");
      running = await get(client, "/fleet/requests");
    } catch (error) {
      connection.gone(error instanceof OtherAnswer ? error.message : "The router does not answer");
      modelsWanted = true;
      await connection.pause();
      continue;
    }
    totals.update(fleet);
    nodes.update(fleet.nodes);
    requests.update(running);
    forget.hidden = !keyRing.any();
    connection.live();
    if (modelsWanted) {
      modelsWanted = false;
      // Not waited for: it may have to ask for a key.
      chat.loadModels().catch(() => {
        modelsWanted = true;
      });
    }
    await connection.pause();
  }
}

main();

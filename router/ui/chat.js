// A conversation with a model, to try it.

const MAX_TURNS = 40;
// How far from its end a conversation may be scrolled and still follow what comes.
const FOLLOW_PX = 40;

/** What was said by one side, on the page. */
class Turn {
  constructor(parent, who) {
    this.element = add(parent, "div", "turn");
    add(this.element, "div", "who").textContent = who;
    this.said = add(this.element, "div", "said").appendChild(document.createTextNode(""));
    this.figures = add(this.element, "div", "figures");
  }

  say(text) {
    this.said.appendData(text);
  }

  fail(message) {
    setText(this.figures, message);
    this.figures.className = "error";
  }
}

/** How an answer went: tokens, time to first token, tokens per second. */
class Pace {
  constructor() {
    this.began = performance.now();
    this.first = null;
    this.last = null;
    this.pieces = 0;
    this.tokens = null;
    this.finish = null;
  }

  piece() {
    this.last = performance.now();
    this.first ??= this.last;
    this.pieces += 1;
  }

  /** Tokens are counted by the router; until it says how many, pieces of text are. */
  get text() {
    if (this.first === null) return "";
    const tokens = this.tokens ?? this.pieces;
    const seconds = (this.last - this.first) / 1000;
    return joined(
      `first token ${duration((this.first - this.began) / 1000)}`,
      tokens > 1 && seconds > 0 && `${rate((tokens - 1) / seconds)} tokens/s`,
      counted(tokens, "token"),
      { stop: "ended by itself", length: "ended at max tokens", user: "stopped" }[this.finish],
    );
  }
}

/** An error that the router answered with. */
class Refusal extends Error {}

class Chat {
  constructor(client, { announce }) {
    this.client = client;
    this.announce = announce;
    this.form = byId("chat-form");
    this.model = byId("model");
    this.message = byId("message");
    this.send = byId("send");
    this.log = byId("conversation");
    this.hint = this.log.firstElementChild;
    this.turns = [];
    this.messages = [];
    this.stopper = null;
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    this.send.addEventListener("click", () => this.stop());
    this.message.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.stopper) this.form.requestSubmit();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.stop();
    });
    byId("clear").addEventListener("click", () => this.clear());
  }

  /** Offer the models that the router has now, keeping the choice. */
  async loadModels() {
    const response = await this.client.fetch("/v1/models", { timeoutMs: TIMEOUT_MS });
    if (!response.ok) return;
    const names = (await response.json()).data.map(({ id }) => id);
    const chosen = this.model.value;
    this.model.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(chosen)) this.model.value = chosen;
  }

  stop() {
    this.stopper?.abort();
  }

  clear() {
    this.stop();
    this.messages = [];
    this.turns.splice(0).forEach(({ element }) => element.remove());
    this.hint.hidden = false;
    this.message.focus();
  }

  /** Send the message and show the answer as it comes. */
  async ask() {
    const text = this.message.value;
    if (!text.trim()) return;
    const question = { role: "user", content: text };
    this.message.value = "";
    this.hint.hidden = true;
    this.addTurn("You").say(text);
    const turn = this.addTurn(this.model.value);
    const pace = new Pace();
    this.working(true);
    try {
      await this.stream([...this.messages, question], turn, pace);
    } catch (error) {
      if (this.stopper.signal.aborted) {
        pace.finish = "user";
      } else {
        turn.fail(error instanceof Refusal ? error.message : "The connection to the router broke.");
        this.message.value ||= text;
      }
    }
    this.working(false);
    if (turn.said.data && turn.element.isConnected) {
      this.messages.push(question, { role: "assistant", content: turn.said.data });
      this.messages.splice(0, this.messages.length - MAX_TURNS);
    }
    if (turn.figures.className !== "error") setText(turn.figures, pace.text || "stopped");
    this.announce(`Answer: ${turn.figures.textContent}`);
    this.follow();
  }

  async stream(messages, turn, pace) {
    const response = await this.client.fetch("/v1/chat/completions", {
      method: "POST",
      signal: this.stopper.signal,
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({
        model: this.model.value,
        messages,
        temperature: byId("temperature").valueAsNumber,
        max_tokens: byId("max-tokens").valueAsNumber,
        stream: true,
        stream_options: { include_usage: true },
      }),
    });
    if (!response.ok) throw new Refusal((await response.json()).error.message);
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      this.take(JSON.parse(data), turn, pace);
    }
    throw new TypeError("the stream has no end");
  }

  /** Show what a chunk of the answer brings. */
  take({ error, usage, choices }, turn, pace) {
    if (error) throw new Refusal(error.message);
    if (usage) pace.tokens = usage.completion_tokens;
    const [choice] = choices;
    if (!choice) return;
    pace.finish = choice.finish_reason ?? pace.finish;
    if (choice.delta.content) {
      pace.piece();
      turn.say(choice.delta.content);
      setText(turn.figures, pace.text);
    }
    this.follow();
  }

  addTurn(who) {
    const turn = new Turn(this.log, who);
    this.turns.push(turn);
    for (const old of this.turns.splice(0, this.turns.length - MAX_TURNS)) old.element.remove();
    this.log.scrollTop = this.log.scrollHeight;
    return turn;
  }

  /** Stay at the end, unless it was scrolled away from there. */
  follow() {
    const { scrollHeight, scrollTop, clientHeight } = this.log;
    if (scrollHeight - scrollTop - clientHeight < FOLLOW_PX) this.log.scrollTop = scrollHeight;
  }

  /** One button sends and stops, so that it keeps the focus; stopping asks for no valid form. */
  working(answering) {
    this.stopper = answering ? new AbortController() : null;
    this.log.setAttribute("aria-busy", String(answering));
    setText(this.send, answering ? "Stop" : "Send");
    this.send.type = answering ? "button" : "submit";
    if (answering) this.announce("Answering");
  }
}

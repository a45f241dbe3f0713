// The fleet in a row of figures.

/** A figure with its name, a line below it and, for some, a sparkline beside it. */
class Tile {
  constructor(list, label, { title = "", spark = 0 } = {}) {
    const tile = add(list, "div");
    tile.title = title;
    add(tile, "dt").textContent = label;
    const value = add(tile, "dd");
    this.value = add(value, "span");
    this.sub = add(tile, "dd", "sub");
    if (spark) this.spark = new Sparkline(value, spark);
  }

  show(text, sub, { tone, subTone, history } = {}) {
    setText(this.value, text);
    setText(this.sub, sub);
    setTone(this.value, tone);
    setTone(this.sub, subTone);
    this.spark?.show(history ?? [], Math.max(...(history ?? []), 0));
  }
}

const HISTORY_SAMPLES = 90;

class Totals {
  constructor(list) {
    const spark = HISTORY_SAMPLES;
    this.nodes = new Tile(list, "Nodes", { title: "Nodes that take requests, of those known" });
    this.requests = new Tile(list, "Requests/s", { spark, title: "Requests that arrive" });
    this.tokens = new Tile(list, "Tokens/s", { spark, title: "Tokens of answers" });
    this.ttft = new Tile(list, "First token", { title: "Mean time to first token, last minute" });
    this.inFlight = new Tile(list, "In flight", { title: "Sequences in the router, in any state" });
    this.waiting = new Tile(list, "Waiting", { title: "Sequences that wait for a place on a node" });
    this.cache = new Tile(list, "Cache hits", {
      title: "Prompt tokens that came out of nodes' caches, last minute",
    });
  }

  update({ router, nodes }) {
    const { recent, queued } = router;
    const taking = nodes.filter(takesRequests).length;
    const lost = nodes.filter((node) => toneOf(node.state) === "bad").length;
    this.nodes.show(`${taking} of ${nodes.length}`, lost ? `${lost} lost` : "take requests", {
      tone: nodes.length && !taking ? "bad" : undefined,
      subTone: lost ? "bad" : undefined,
    });
    const failed = recent.failed;
    this.requests.show(
      rate(recent.requests_per_s),
      failed ? `${count(failed)} failed in ${this.span(recent.history)}` : "none failed",
      { history: recent.history.requests_per_s, subTone: failed ? "warn" : undefined },
    );
    this.tokens.show(rate(recent.tokens_per_s), `last ${this.span(recent.history)}`, {
      history: recent.history.tokens_per_s,
    });
    this.ttft.show(duration(recent.ttft_s), "mean, last minute");
    const full = share(router.sequences, router.max_sequences);
    this.inFlight.show(count(router.sequences), `of ${count(router.max_sequences)}`, {
      subTone: full > 0.9 ? "warn" : undefined,
    });
    this.waiting.show(
      count(queued.interactive + queued.batch),
      `${count(queued.interactive)} interactive · ${count(queued.batch)} batch`,
    );
    this.cache.show(percent(recent.cache_hit_share), "last minute");
  }

  /** How far back a history goes when it is full. */
  span({ sample_s }) {
    return `${Math.round((HISTORY_SAMPLES * sample_s) / 60)} min`;
  }
}

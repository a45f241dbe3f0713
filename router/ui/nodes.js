// A row per node: what it does, how fast, how full and how hot it is.

const STATE_TONES = {
  ready: "good",
  busy: "good",
  draining: "warn",
  loading: "warn",
  hung: "bad",
  dead: "bad",
  fenced: "bad",
};
const THERMAL_STATES = ["nominal", "fair", "serious", "critical"];
const PRESSURES = ["normal", "warning", "critical"];
const SILENT_S = 2;
// What a node may be slower than it was before it is said.
const SLOWDOWN = 1.05;

const toneOf = (state) => STATE_TONES[state] ?? "bad";
const generates = (node) => toneOf(node.state) === "good";
const takesRequests = (node) => generates(node) && node.breaker === "closed";
const sensors = (node) => node.telemetry ?? {};

const NODE_COLUMNS = [
  { label: "Node", className: "strong clip", show: showName },
  { label: "State", dot: true, show: showState },
  { label: "Load", bar: true, title: "Sequences running, of those that can", show: showLoad },
  { label: "Tokens/s", className: "beside", spark: HISTORY_SAMPLES, show: showSpeed },
  { label: "Cache hits", title: "Prompt tokens out of its cache, last minute", show: showCache },
  { label: "KV cache", bar: true, title: "Used, of the budget", show: showKv },
  { label: "Memory", bar: true, title: "The machine's, with pressure and swap", show: showMemory },
  { label: "Heat", title: "Hottest sensor, power and thermal state", show: showHeat },
  { label: "Weight", title: "Its share in routing, 100% when nothing is wrong", show: showWeight },
];

function showName(node, { severalModels }) {
  const memory = node.memory_bytes > 0 && `${count(node.memory_bytes / 1e9)} GB`;
  const sub = joined(severalModels && node.model, node.chip, memory);
  return { text: node.name, sub, title: joined(node.model, node.host, node.chip, memory) };
}

function showState(node) {
  const restarts = node.restarts + node.worker_restarts;
  const kept = generates(node) && !takesRequests(node);
  const sub = joined(
    kept && node.state,
    node.loading && loadProgress(node.loading),
    node.silent_s > SILENT_S && `silent ${duration(node.silent_s)}`,
    node.fenced && `broke the protocol: ${node.fenced}`,
    !kept && node.breaker !== "closed" && breakerOf(node),
    restarts > 0 && counted(restarts, "restart"),
  );
  if (kept) return { text: breakerOf(node), tone: "bad", sub };
  return { text: node.state, tone: toneOf(node.state), sub };
}

/** What keeps requests away after faults, and for how long. */
function breakerOf({ breaker, breaker_open_s }) {
  const left = breaker_open_s > 0 && duration(breaker_open_s);
  return ["breaker", breaker.replaceAll("_", " "), left].filter(Boolean).join(" ");
}

const LOAD_STAGES = { starting: "starts", testing: "tests the model", measuring: "measures passes" };

/** How far a node is with its model: "31 of 98 GB · about 40 s". */
function loadProgress({ stage, loaded_bytes, total_bytes, remaining_s }) {
  if (LOAD_STAGES[stage] || !(total_bytes > 0)) return LOAD_STAGES[stage] ?? "starts";
  const [part, all] = inOneUnit(loaded_bytes, total_bytes);
  return joined(`${part} of ${all}`, known(remaining_s) && `about ${duration(remaining_s)}`);
}

function showLoad(node) {
  return {
    text: `${count(node.running)} of ${count(node.max_running)}`,
    share: share(node.running, node.max_running),
    sub: node.queued > 0 ? `${count(node.queued)} queued` : "",
    title: `${counted(node.sequences, "sequence")} sent to it by this router`,
  };
}

function showSpeed(node, { fastest }) {
  return { text: rate(node.tokens_per_s), history: node.recent.tokens_per_s, top: fastest };
}

function showCache(node) {
  return { text: percent(node.recent.cache_hit_share) };
}

function showKv(node) {
  if (node.kv_budget_bytes <= 0) return {};
  const used = share(node.kv_used_bytes, node.kv_budget_bytes);
  const [part, all] = inOneUnit(node.kv_used_bytes, node.kv_budget_bytes);
  return { text: `${part} of ${all}`, share: used, barTone: used > 0.95 ? "warn" : undefined };
}

/** Two sizes, in MB or GB as the larger wants. */
function inOneUnit(part, all) {
  if (all < 1e9) return [count(part / 1e6), `${count(all / 1e6)} MB`];
  const format = all < 1e11 ? tenths : whole;
  return [format.format(part / 1e9), `${format.format(all / 1e9)} GB`];
}

function showMemory(node) {
  const { memory_used_bytes, memory_total_bytes, memory_pressure, swap_used_bytes } = sensors(node);
  const swaps = known(swap_used_bytes) && swap_used_bytes >= 5e7;
  const tone = ["", "warn", "bad"][memory_pressure ?? 0];
  const sub = joined(
    known(memory_pressure) && `pressure ${PRESSURES[memory_pressure] ?? memory_pressure}`,
    swaps && `swap ${gigabytes(swap_used_bytes)} GB`,
  );
  if (!known(memory_used_bytes) || !known(memory_total_bytes)) return { sub, subTone: tone };
  const [part, all] = inOneUnit(memory_used_bytes, memory_total_bytes);
  return {
    text: `${part} of ${all}`,
    share: share(memory_used_bytes, memory_total_bytes),
    barTone: tone,
    sub,
    subTone: tone || (swaps ? "warn" : ""),
  };
}

function showHeat(node) {
  const { gpu_temperature_c, cpu_temperature_c, thermal_state, total_power_w } = sensors(node);
  const temperatures = { GPU: gpu_temperature_c, CPU: cpu_temperature_c };
  const parts = Object.keys(temperatures).filter((part) => known(temperatures[part]));
  const hottest = parts.sort((a, b) => temperatures[b] - temperatures[a])[0];
  const tone = ["", "", "warn", "bad"][thermal_state ?? 0];
  return {
    text: hottest && `${hottest} ${count(temperatures[hottest])} °C`,
    tone,
    sub: joined(
      known(thermal_state) && (THERMAL_STATES[thermal_state] ?? String(thermal_state)),
      known(total_power_w) && `${count(total_power_w)} W`,
    ),
    subTone: tone,
    title: parts.map((part) => `${part} ${tenths.format(temperatures[part])} °C`).join(", "),
  };
}

function showWeight(node) {
  const slow = node.slowdown >= SLOWDOWN;
  return {
    text: percent(node.weight),
    tone: known(node.weight) && node.weight < 0.995 ? "warn" : undefined,
    sub: slow ? `passes take ${percent(node.slowdown - 1)} longer` : "",
    subTone: "warn",
  };
}

class Nodes {
  constructor(table, { note, empty, announce }) {
    this.table = new LiveTable(table, NODE_COLUMNS, (node) => node.name);
    this.region = table.parentElement;
    this.note = note;
    this.empty = empty;
    this.announce = announce;
    this.tones = new Map();
  }

  update(nodes) {
    const byName = (a, b) => a.name.localeCompare(b.name, "en", { numeric: true });
    const sorted = [...nodes].sort(byName);
    this.table.update(sorted, {
      severalModels: new Set(nodes.map((node) => node.model)).size > 1,
      fastest: Math.max(0, ...nodes.flatMap((node) => node.recent.tokens_per_s)),
    });
    this.region.hidden = nodes.length === 0;
    this.empty.hidden = nodes.length > 0;
    const models = [...new Set(nodes.map((node) => node.model))].sort();
    setText(this.note, models.slice(0, 4).join(", "));
    this.tell(sorted);
  }

  /** Say which nodes were lost or have come back; busy and ready are the same here. */
  tell(nodes) {
    const changed = nodes.filter(({ name, state }) => {
      const before = this.tones.get(name);
      return before !== undefined && before !== toneOf(state);
    });
    const first = this.tones.size === 0;
    this.tones = new Map(nodes.map(({ name, state }) => [name, toneOf(state)]));
    if (!first && changed.length > 0) {
      this.announce(changed.map(({ name, state }) => `${name} is ${state}`).slice(0, 5).join(", "));
    }
  }
}

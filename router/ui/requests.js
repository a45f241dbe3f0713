// A row per running sequence, the oldest first.

const REQUEST_TONES = { waiting: "warn", prefill: undefined, decoding: "good" };

const REQUEST_COLUMNS = [
  { label: "Request", className: "mono", show: showId },
  { label: "State", dot: true, show: showStage },
  { label: "Node", className: "clip", show: ({ node }) => ({ text: node || UNKNOWN }) },
  { label: "Model", className: "clip", show: ({ model }) => ({ text: model, title: model }) },
  { label: "Tokens", className: "beside", bar: true, title: "Of the most it may have", show: showTokens },
  { label: "Prompt", title: "Tokens of the prompt", show: (r) => ({ text: count(r.prompt_tokens) }) },
  { label: "Age", show: ({ age_s }) => ({ text: duration(age_s) }) },
  { label: "Priority", show: ({ priority }) => ({ text: priority }) },
];

function showId({ id, moves }) {
  const moved = moves > 0 && `moved ${moves === 1 ? "once" : `${moves} times`}`;
  // The beginning is enough to find it, and the end tells choices apart.
  return { text: id.replace(/^(.{8}).*?(-\d+)?$/, "$1$2"), title: joined(id, moved) };
}

function showStage({ state }) {
  return { text: state, tone: REQUEST_TONES[state] };
}

function showTokens({ tokens, max_tokens }) {
  return {
    text: count(tokens),
    share: share(tokens, max_tokens),
    title: `${count(tokens)} of at most ${count(max_tokens)}`,
  };
}

class Requests {
  constructor(table, { note, empty }) {
    this.table = new LiveTable(table, REQUEST_COLUMNS, (request) => request.id);
    this.element = table;
    this.note = note;
    this.empty = empty;
  }

  update({ total, requests }) {
    this.table.update(requests);
    this.element.hidden = requests.length === 0;
    this.empty.hidden = requests.length > 0;
    const shown = requests.length < total ? `the oldest ${count(requests.length)} of ` : "";
    setText(this.note, total > 0 ? `${shown}${count(total)} running` : "");
  }
}

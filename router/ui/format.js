"use strict";

// How figures are written. What is not known is a dash.

const UNKNOWN = "–";
const byId = (id) => document.getElementById(id);
const known = (value) => value !== null && value !== undefined;
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

const count = (value) => (known(value) ? whole.format(value) : UNKNOWN);
const percent = (share) => (known(share) ? `${Math.round(share * 100)}%` : UNKNOWN);
const rate = (value) => (known(value) && value > 0 && value < 10 ? tenths.format(value) : count(value));
const gigabytes = (bytes) => tenths.format(bytes / 1e9);
const share = (part, all) => (all > 0 ? Math.min(part / all, 1) : 0);

/** A length of time, such as 350 ms, 2.4 s, 41 s, 3 min 05 s, 2 h 10 min. */
function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  if (seconds < 1) return `${whole.format(seconds * 1000)} ms`;
  if (seconds < 10) return `${tenths.format(seconds)} s`;
  if (seconds < 60) return `${whole.format(Math.floor(seconds))} s`;
  const minutes = Math.floor(seconds / 60);
  const two = (value) => String(value).padStart(2, "0");
  if (minutes < 60) return `${minutes} min ${two(Math.floor(seconds % 60))} s`;
  return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
}

/** "1 node", "2 nodes". */
function counted(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

/** Parts that say something, with dots between. */
function joined(...parts) {
  return parts.filter(Boolean).join(" · ");
}

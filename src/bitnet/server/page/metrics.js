// What /metrics says: Prometheus' text, rates from counters, percentiles from histograms, some minutes of history.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?[ \t]+(\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { n: "\n", "\\": "\\", '"': '"' };
const VALUES = { "+Inf": Infinity, "-Inf": -Infinity };

/** Name -> [{labels, value}]. */
export function parse(text) {
  const series = new Map();
  for (const line of text.split("\n")) {
    const found = line[0] === "#" ? null : LINE.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, name, value] of (found[2] ?? "").matchAll(LABEL)) labels[name] = value.replace(/\\(.)/g, (all, c) => ESCAPES[c] ?? all);
    if (!series.has(found[1])) series.set(found[1], []);
    series.get(found[1]).push({ labels, value: VALUES[found[3]] ?? parseFloat(found[3]) });
  }
  return series;
}

export class Snapshot {
  constructor(series, time) {
    this.series = series;
    this.time = time;
  }

  each(name, model) {
    return (this.series.get(name) ?? []).filter(({ labels }) => !model || (labels.model ?? model) === model);
  }

  /** The sum over all series; null where there is none. */
  total(name, model) {
    const found = this.each(name, model);
    return found.length ? found.reduce((sum, { value }) => sum + value, 0) : null;
  }

  most(name, model) {
    const found = this.each(name, model);
    return found.length ? Math.max(...found.map(({ value }) => value)) : null;
  }

  /** [[label's value, value]] */
  by(name, label) {
    return this.each(name).map(({ labels, value }) => [labels[label], value]);
  }

  label(name, label) {
    return this.each(name)[0]?.labels[label] ?? null;
  }

  buckets(name, model) {
    const found = new Map();
    for (const { labels, value } of this.each(`${name}_bucket`, model)) {
      const bound = VALUES[labels.le] ?? parseFloat(labels.le);
      found.set(bound, (found.get(bound) ?? 0) + value);
    }
    return found;
  }
}

/** As Prometheus' histogram_quantile: linear within a bucket, and the last bound for what lies above it. */
export function quantile(q, cumulative) {
  const bounds = [...cumulative.keys()].sort((a, b) => a - b);
  const all = cumulative.get(Infinity);
  if (!(all > 0)) return null;
  let low = 0;
  let below = 0;
  for (const bound of bounds) {
    const count = cumulative.get(bound);
    if (bound === Infinity) break;
    if (count >= q * all) return low + (bound - low) * (count > below ? (q * all - below) / (count - below) : 1);
    [low, below] = [bound, count];
  }
  return low;
}

/** Snapshots, oldest first; across a restart of the server no differences are taken. */
export class History {
  snapshots = [];
  restarts = [];

  constructor(seconds) {
    this.seconds = seconds;
  }

  /** Whether this is another server than before: it says so, or its counters fell. */
  add(snapshot) {
    const before = this.snapshots.at(-1);
    const restarted = Boolean(before) && differs(before, snapshot);
    if (restarted) {
      this.restarts = [...this.restarts, snapshot.time].filter((time) => snapshot.time - time < this.seconds);
      this.snapshots = [];
    }
    this.snapshots = [...this.snapshots.filter(({ time }) => snapshot.time - time <= this.seconds), snapshot];
    return restarted;
  }

  get last() {
    return this.snapshots.at(-1);
  }

  /** The youngest snapshot that is so old, or else the oldest. */
  before(seconds) {
    const found = this.snapshots.findLast(({ time }) => this.last.time - time >= seconds * 0.99) ?? this.snapshots[0];
    return found === this.last ? null : found;
  }

  growth(name, seconds, model) {
    const before = this.before(seconds);
    const now = this.last.total(name, model);
    return before && now != null ? now - (before.total(name, model) ?? 0) : null;
  }

  rate(name, seconds, model) {
    const grown = this.growth(name, seconds, model);
    return grown == null ? null : grown / (this.last.time - this.before(seconds).time);
  }

  percentile(q, name, seconds, model) {
    const before = this.before(seconds)?.buckets(name, model);
    if (!before) return null;
    return quantile(q, new Map([...this.last.buckets(name, model)].map(([bound, count]) => [bound, count - (before.get(bound) ?? 0)])));
  }
}

function differs(before, now) {
  const starts = [before, now].map((each) => each.total("bitnet_start_time_seconds"));
  if (!starts.includes(null)) return starts[0] !== starts[1];
  return [...before.series].some(([name]) => name.endsWith("_total") && (now.total(name) ?? Infinity) < before.total(name));
}

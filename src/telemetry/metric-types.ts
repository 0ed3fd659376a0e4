import type { Metric, Registry } from 'prom-client';

/**
 * Counters, gauges and histograms for prom-client's registry. A labelled prom-client counter costs as much as a request
 * answered from memory, so values are plain fields here, read at each scrape.
 */

/** A value as prom-client's registry expects it. */
interface Sample {
  labels: Record<string, string | number>;
  value: number;
  metricName?: string;
}

interface Description {
  readonly type: 'counter' | 'gauge' | 'histogram';
  readonly name: string;
  readonly help: string;
}

/** Registers a metric; metrics render in order of registration. */
function register(registry: Registry, description: Description, samples: () => Sample[]): void {
  const metric = {
    ...description,
    aggregator: 'sum',
    get: () => Promise.resolve({ ...description, aggregator: 'sum', values: samples() }),
  };
  // The type demands prom-client's classes; the registry only calls get().
  registry.registerMetric(metric as unknown as Metric);
}

/** One series of a counter; holders increment `count`. */
export interface Series {
  count: number;
}

/** A counter with labels; label values are given in the order of the names. */
export class Counter<L extends string[]> {
  readonly #labels: readonly string[];
  readonly #series = new Map<string, { values: L; count: number }>();

  constructor(registry: Registry, name: string, help: string, labels: { [K in keyof L]: string }) {
    this.#labels = labels;
    register(registry, { type: 'counter', name, help }, () => this.#samples());
  }

  add(count: number, ...values: L): void {
    this.series(...values).count += count;
  }

  /** The series of these label values; callers may keep it to save the lookup. */
  series(...values: L): Series {
    const key = values.join('\n');
    let series = this.#series.get(key);
    if (!series) {
      series = { values, count: 0 };
      this.#series.set(key, series);
    }
    return series;
  }

  get total(): number {
    let total = 0;
    for (const { count } of this.#series.values()) total += count;
    return total;
  }

  #samples(): Sample[] {
    return [...this.#series.values()].map(({ values, count }) => ({
      labels: labelled(this.#labels, values),
      value: count,
    }));
  }
}

/** A gauge without labels. */
export class Gauge {
  /** Called at each scrape; undefined counts as 0. */
  readonly read: () => number | undefined;

  constructor(registry: Registry, name: string, help: string, read: () => number | undefined) {
    this.read = read;
    register(registry, { type: 'gauge', name, help }, () => [{ labels: {}, value: this.read() ?? 0 }]);
  }
}

/** All series of a gauge: label values in the order of their names, then the value. */
export type Reading<L extends string[]> = [...L, value: number][];

/** A gauge with labels. */
export class Gauges<L extends string[]> {
  /** Called at each scrape; undefined means no series. */
  readonly read: () => Reading<L> | undefined;
  readonly #labels: readonly string[];

  constructor(
    registry: Registry,
    name: string,
    help: string,
    labels: { [K in keyof L]: string },
    read: () => Reading<L> | undefined,
  ) {
    this.read = read;
    this.#labels = labels;
    register(registry, { type: 'gauge', name, help }, () => this.#samples());
  }

  #samples(): Sample[] {
    return (this.read() ?? []).map((series) => ({
      labels: labelled(this.#labels, series as unknown as readonly string[]),
      value: series.at(-1) as number,
    }));
  }
}

export class Histogram {
  readonly #name: string;
  readonly #bounds: readonly number[];
  readonly #counts: Float64Array;
  #sum = 0;

  constructor(registry: Registry, name: string, help: string, bounds: readonly number[]) {
    this.#name = name;
    this.#bounds = bounds;
    this.#counts = new Float64Array(bounds.length + 1);
    register(registry, { type: 'histogram', name, help }, () => this.#samples());
  }

  observe(value: number): void {
    let at = 0;
    while (at < this.#bounds.length && value > (this.#bounds[at] ?? Infinity)) at += 1;
    this.#counts[at] = (this.#counts[at] ?? 0) + 1;
    this.#sum += value;
  }

  #samples(): Sample[] {
    let total = 0;
    const buckets = [...this.#bounds, '+Inf'].map((le, i) => {
      total += this.#counts[i] ?? 0;
      return { metricName: `${this.#name}_bucket`, labels: { le }, value: total };
    });
    return [
      ...buckets,
      { metricName: `${this.#name}_sum`, labels: {}, value: this.#sum },
      { metricName: `${this.#name}_count`, labels: {}, value: total },
    ];
  }
}

function labelled(names: readonly string[], values: readonly string[]): Record<string, string> {
  return Object.fromEntries(names.map((name, i) => [name, values[i] ?? '']));
}

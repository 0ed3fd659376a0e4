import { readdir, readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Surroundings } from './clients.ts';
import { limits } from './subject.ts';

interface Reading {
  readonly diskBytes: number;
  readonly rssBytes: number;
  readonly handles: number;
  readonly lagSeconds: number;
}

/** Monitors the mirror from outside: disk, memory, handles, event loop lag. */
export class Observer {
  readonly #around: Surroundings;
  readonly #peak: Record<keyof Reading, number> = { diskBytes: 0, rssBytes: 0, handles: 0, lagSeconds: 0 };
  #last: Reading | undefined;

  constructor(around: Surroundings) {
    this.#around = around;
  }

  async run(): Promise<void> {
    while (!this.#around.isOver) {
      await this.look();
      await sleep(1000);
      for (const upstream of this.#around.world.upstreams) upstream.forget();
      this.#around.world.liar.forget();
    }
  }

  async look(): Promise<void> {
    const { subject, findings } = this.#around;
    const { pid } = subject;
    try {
      const diskBytes = (await subject.files()).reduce((sum, file) => sum + file.diskBytes, 0);
      if (diskBytes > limits.maxBytes + limits.slackBytes)
        findings.add(`the data directory has ${diskBytes} bytes`);
      this.#peak.diskBytes = Math.max(this.#peak.diskBytes, diskBytes);
      if (!subject.isUp) return;
      const metrics = await subject.metrics();
      const reading = {
        diskBytes,
        rssBytes: Number(/VmRSS:\s+(\d+)/.exec(await readFile(`/proc/${pid}/status`, 'utf8'))?.[1]) * 1024,
        handles: (await readdir(`/proc/${pid}/fd`)).length,
        lagSeconds: metrics.get('nodejs_eventloop_lag_max_seconds') ?? 0,
      };
      this.#last = reading;
      for (const key of Object.keys(reading) as (keyof Reading)[])
        this.#peak[key] = Math.max(this.#peak[key], reading[key]);
      if (reading.rssBytes > limits.rssBytes) findings.add(`${reading.rssBytes} bytes of memory`);
      if (reading.handles > limits.handles) findings.add(`${reading.handles} handles`);
      if (reading.lagSeconds > limits.loopLagSeconds) findings.add(`event loop lag ${reading.lagSeconds} s`);
    } catch (error) {
      if (subject.isUp && subject.pid === pid && this.#around.calmSince < Date.now() - 2000)
        findings.add(`the mirror cannot be observed: ${String(error)}`);
    }
  }

  /** Without clients: compares the metrics with the files, and checks for open handles. */
  async atRest(): Promise<void> {
    const { subject, findings } = this.#around;
    const metrics = await subject.metrics();
    const reported = metrics.get('layercache_store_bytes') ?? 0;
    const folders = await Promise.all(
      ['blobs', 'ingest', 'quarantine'].map((folder) => subject.files(folder)),
    );
    const found = folders.flat().reduce((sum, file) => sum + file.diskBytes, 0);
    findings.say(`at rest: layercache_store_bytes ${reported}, du ${found}`);
    if (Math.abs(reported - found) > 2_000_000)
      findings.add(`layercache_store_bytes is ${reported}, du reports ${found}`);
    if ((metrics.get('layercache_fills_active') ?? 0) !== 0)
      findings.add('downloads are active without clients');
    if ((this.#last?.handles ?? 0) > 150) findings.add(`${this.#last?.handles ?? 0} handles at rest`);
    const used = [...metrics].filter(([name]) => name.startsWith('layercache_faults_total'));
    findings.say(
      `faults: ${used.map(([name, value]) => `${/"(.*)"/.exec(name)?.[1] ?? ''} ${value}`).join(', ')}`,
    );
  }

  summary(): string {
    const text = ({ diskBytes, rssBytes, handles, lagSeconds }: Reading): string =>
      `disk ${mb(diskBytes)} MB, memory ${mb(rssBytes)} MB, ${handles} handles, lag ${lagSeconds.toFixed(3)} s`;
    return `now ${this.#last ? text(this.#last) : 'unknown'}; peak ${text(this.#peak)}`;
  }
}

function mb(bytes: number): string {
  return (bytes / 1e6).toFixed(0);
}

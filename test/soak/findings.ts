/** Errors and counters of the soak. */
export class Findings {
  readonly counts = new Map<string, number>();
  readonly wrong: string[] = [];
  /** The current phase, printed with each finding. */
  phase = 'start';
  readonly #started = Date.now();

  count(what: string): void {
    this.counts.set(what, (this.counts.get(what) ?? 0) + 1);
  }

  add(what: string): void {
    const line = `${this.seconds} s, ${this.phase}: ${what}`;
    this.wrong.push(line);
    if (this.wrong.length <= 200) process.stdout.write(`WRONG ${line}\n`);
  }

  say(what: string): void {
    process.stdout.write(`${this.seconds} s: ${what}\n`);
  }

  get seconds(): string {
    return ((Date.now() - this.#started) / 1000).toFixed(1);
  }
}

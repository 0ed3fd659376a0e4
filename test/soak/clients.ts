import { Agent } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { ask, type Ask, type Reply } from '../support/http.ts';
import type { Findings } from './findings.ts';
import type { Random } from './random.ts';
import { limits, type Subject } from './subject.ts';
import type { Item, Version, World } from './world.ts';

const outsiderAddress = '127.0.0.3';
/** Statuses allowed while an upstream fails. */
const refusals = new Set([429, 502, 503, 504]);
/** Allowance for delays of this process. */
const toleranceMs = 3000;
const longestAnswerMs = 120_000;
/** A damaged large blob may be served until it is verified again. */
const damageShowsMs = 11 * 60_000;

/** State shared by all clients. */
export interface Surroundings {
  readonly world: World;
  readonly subject: Subject;
  readonly findings: Findings;
  /** Time (ms) since which no trouble is active and every pull must work; Infinity during trouble. */
  calmSince: number;
  /** Time (ms) at which a blob was damaged on disk, by digest. */
  readonly damaged: Map<string, number>;
  isOver: boolean;
}

interface Expected {
  readonly what: string;
  readonly path: string;
  readonly ns: string;
  /** The expected body; undefined: the request must be refused. */
  readonly bytes: Buffer | undefined;
  readonly digest: string;
  readonly range?: readonly [start: number, end: number];
  readonly options?: Ask;
}

/** A client that pulls in various ways and checks every byte. */
export class Client {
  readonly #around: Surroundings;
  readonly #random: Random;
  readonly #agent: Agent;
  readonly #isOutsider: boolean;

  constructor(around: Surroundings, random: Random, isOutsider: boolean) {
    this.#around = around;
    this.#random = random;
    this.#isOutsider = isOutsider;
    this.#agent = new Agent({
      keepAlive: true,
      maxSockets: 4,
      ...(isOutsider && { localAddress: outsiderAddress }),
    });
  }

  async run(): Promise<void> {
    const ways: readonly [share: number, way: (item: Item) => Promise<void>][] = [
      [50, (item) => this.#pull(item)],
      [15, (item) => this.#range(item)],
      [8, (item) => this.#resume(item)],
      [8, (item) => this.#head(item)],
      [8, (item) => this.#ifChanged(item)],
      [6, (item) => this.#list(item)],
      [8, (item) => this.#foreign(item)],
      [2, (item) => this.#slowly(item)],
    ];
    const all = ways.reduce((sum, [share]) => sum + share, 0);
    while (!this.#around.isOver) {
      let at = this.#random.next() * all;
      const [, way] = ways.find(([share]) => (at -= share) < 0)!;
      await way(this.#random.zipf(this.#around.world.items)).catch((error: unknown) =>
        this.#around.findings.add(`the client failed: ${String((error as Error).stack)}`),
      );
      await sleep(this.#random.between(0, 60));
    }
    this.#agent.destroy();
  }

  /** A complete pull: tag, one platform, then configuration and layers in parallel. */
  async #pull(item: Item): Promise<void> {
    const version = await this.#tag(item);
    if (!version) return;
    const image = this.#random.of(version.images);
    if (image.manifest !== version.manifest) await this.#blob(item, image.manifest, 'manifests');
    await Promise.all([image.config, ...image.layers].map((blob) => this.#blob(item, blob)));
  }

  /** Resolves a tag; undefined if the response was incomplete or wrong. */
  async #tag(item: Item, options: Ask = {}): Promise<Version | undefined> {
    const asked = Date.now();
    const path = `/v2/${item.repo}/manifests/${item.tag}`;
    const isCalm = this.#isCalmSince(asked - limits.tagTtlMs - 1000);
    const reply = await this.#ask(path, item.ns, options, this.#mustRefuse(item));
    if (reply?.status !== 200 || reply.broken || this.#mustRefuse(item)) return undefined;
    const version = item.versions.find(({ manifest }) => reply.body.equals(manifest.bytes));
    if (!version) this.#wrong(path, reply, 'the tag leads to what it never led to');
    else if (isCalm && version.replacedAt < asked - limits.tagTtlMs - 1000)
      this.#wrong(path, reply, `the tag was moved ${asked - version.replacedAt} ms ago`);
    else if (reply.headers['content-type'] !== version.manifest.mediaType)
      this.#wrong(path, reply, `content-type ${String(reply.headers['content-type'])}`);
    else if (reply.headers['docker-content-digest'] !== version.manifest.digest)
      this.#wrong(path, reply, 'docker-content-digest is not that of the body');
    return version;
  }

  async #blob(
    item: Item,
    { digest, bytes }: { digest: string; bytes: Buffer },
    kind = 'blobs',
    options: Ask = {},
  ): Promise<void> {
    const path = `/v2/${item.repo}/${kind}/${digest}`;
    await this.#check({
      what: kind,
      path,
      ns: item.ns,
      bytes: this.#mustRefuse(item) ? undefined : bytes,
      digest,
      options,
    });
  }

  async #range(item: Item): Promise<void> {
    const { digest, bytes } = this.#layer(item);
    const start = this.#random.between(0, bytes.length);
    const end = this.#random.between(start, bytes.length) + 1;
    await this.#check({
      what: 'range',
      path: `/v2/${item.repo}/blobs/${digest}`,
      ns: item.ns,
      bytes: this.#mustRefuse(item) ? undefined : bytes,
      digest,
      range: [start, end],
      options: { headers: { range: `bytes=${start}-${end - 1}` } },
    });
  }

  /** Aborts a download and resumes it by a range. */
  async #resume(item: Item): Promise<void> {
    const { digest, bytes } = this.#layer(item);
    const path = `/v2/${item.repo}/blobs/${digest}`;
    const stopAt = this.#random.between(1, bytes.length + 1);
    const first = await this.#ask(
      path,
      item.ns,
      { onData: (_, total) => (total >= stopAt ? false : undefined) },
      true,
    );
    if (this.#mustRefuse(item) || first?.status !== 200) return;
    const start = first.body.length;
    this.#compare(path, first, bytes.subarray(0, start), digest);
    if (start >= bytes.length) return;
    await this.#check({
      what: 'resumed',
      path,
      ns: item.ns,
      bytes,
      digest,
      range: [start, bytes.length],
      options: { headers: { range: `bytes=${start}-` } },
    });
  }

  async #head(item: Item): Promise<void> {
    const { digest, bytes } = this.#layer(item);
    const path = `/v2/${item.repo}/blobs/${digest}`;
    const reply = await this.#ask(path, item.ns, { method: 'HEAD' }, this.#mustRefuse(item));
    if (reply?.status !== 200 || this.#mustRefuse(item)) return;
    if (Number(reply.headers['content-length']) !== bytes.length)
      this.#wrong(path, reply, 'the length of a HEAD');
  }

  async #ifChanged(item: Item): Promise<void> {
    const { manifest } = item.versions.at(-1)!;
    await this.#tag(item, { headers: { 'if-none-match': `"${manifest.digest}"` } });
  }

  async #list(item: Item): Promise<void> {
    const path = `/v2/${item.repo}/tags/list`;
    const reply = await this.#ask(path, item.ns, {}, this.#mustRefuse(item));
    if (reply?.status !== 200 || reply.broken || this.#mustRefuse(item)) return;
    const { tags } = JSON.parse(reply.body.toString()) as { tags: string[] };
    if (!tags.includes(item.tag)) this.#wrong(path, reply, 'the list lacks the tag');
  }

  /** Requests content of a private repo through another repo, of the hub or of a registry that claims to have everything. */
  async #foreign(item: Item): Promise<void> {
    const { digest, bytes } = this.#around.world.foreignTo(item);
    const isLiar = this.#random.next() < 0.5;
    const path = isLiar ? `/v2/evil/blobs/${digest}` : `/v2/${item.repo}/blobs/${digest}`;
    const options = this.#random.next() < 0.5 ? {} : { headers: { range: `bytes=0-${bytes.length - 1}` } };
    const reply = await this.#ask(path, isLiar ? 'liar.azurecr.io' : item.ns, options, true);
    if (!reply || reply.status >= 300) return;
    if (!isLiar || reply.body.equals(bytes.subarray(0, reply.body.length)))
      this.#wrong(path, reply, `private bytes for whom they are not: ${reply.body.length}`);
    else if (reply.status === 200 && !reply.broken) this.#wrong(path, reply, 'a liar’s bytes came whole');
  }

  async #slowly(item: Item): Promise<void> {
    const { digest, bytes } = this.#layer(item);
    await this.#blob(item, { digest, bytes }, 'blobs', { onData: (chunk) => sleep(chunk.length / 1000) });
  }

  #layer(item: Item) {
    return this.#random.of(this.#random.of(item.versions.at(-1)!.images).layers);
  }

  #mustRefuse(item: Item): boolean {
    return this.#isOutsider && item.isPrivate;
  }

  async #check({ what, path, ns, bytes, digest, range, options }: Expected): Promise<void> {
    const reply = await this.#ask(path, ns, options ?? {}, bytes === undefined);
    if (!reply || reply.status >= 300 || bytes === undefined) return;
    this.#around.findings.count(`${what} ${String(reply.headers['x-cache'])}`);
    const isPart = reply.status === 206;
    if (isPart && !range) this.#wrong(path, reply, 'a part that was not asked for');
    const [start, end] = isPart && range ? range : [0, bytes.length];
    const wanted = `bytes ${start}-${end - 1}/${bytes.length}`;
    if (isPart && reply.headers['content-range'] !== wanted)
      this.#wrong(path, reply, `content-range ${String(reply.headers['content-range'])}, not ${wanted}`);
    const expected = bytes.subarray(start, end);
    if (!reply.broken && reply.body.length !== expected.length)
      this.#wrong(path, reply, `${reply.body.length} bytes of ${expected.length}`);
    this.#compare(path, reply, expected.subarray(0, reply.body.length), digest);
  }

  #compare(path: string, reply: Reply, expected: Buffer, digest: string): void {
    if (reply.body.equals(expected)) return;
    const since = this.#around.damaged.get(digest);
    // The end of a broken response may be wrong if the upstream's bytes were: the break signals it.
    if (since !== undefined && Date.now() - since < damageShowsMs)
      this.#around.findings.count('damage was shown');
    else if (reply.broken && reply.status === 200 && !this.#isCalmSince(Date.now() - 1000))
      this.#around.findings.count('a wrong body was broken off');
    else if (reply.status === 206 && !this.#isCalmSince(Date.now() - 20_000))
      this.#around.findings.count('a part of what an upstream falsified');
    else this.#wrong(path, reply, 'wrong bytes');
  }

  /** The response; undefined: there was none, as expected. */
  async #ask(path: string, ns: string, options: Ask, mayBeRefused: boolean): Promise<Reply | undefined> {
    const { subject, findings } = this.#around;
    const url = `${subject.url}${path}${ns === 'docker.io' ? '' : `?ns=${ns}`}`;
    const started = Date.now();
    let headersAt: number | undefined;
    const abort = new AbortController();
    const overdue = setTimeout(() => abort.abort(), longestAnswerMs);
    try {
      const ways: Ask = { ...options, signal: abort.signal, onHeaders: () => (headersAt = Date.now()) };
      // Retry once: the keep-alive connection may just have been closed as idle.
      const reply = await ask(url, { ...ways, agent: this.#agent }).catch(() =>
        ask(url, {
          ...ways,
          agent: new Agent({ localAddress: this.#isOutsider ? outsiderAddress : undefined }),
        }),
      );
      const waitedMs = (headersAt ?? Date.now()) - started;
      if (waitedMs > limits.firstByteMs + toleranceMs)
        this.#wrong(path, reply, `no headers for ${waitedMs} ms`);
      this.#judge(path, reply, started, mayBeRefused, options);
      return reply;
    } catch (error) {
      if (abort.signal.aborted) findings.add(`${path}: no end after ${longestAnswerMs} ms`);
      else if (this.#isCalmSince(started)) findings.add(`${path}: ${String(error)}`);
      await sleep(100);
      return undefined;
    } finally {
      clearTimeout(overdue);
    }
  }

  #judge(path: string, reply: Reply, started: number, mayBeRefused: boolean, { onData }: Ask): void {
    const { status, broken, body } = reply;
    this.#around.findings.count(`status ${status}`);
    const isCalm = this.#isCalmSince(started);
    if (status < 400 && mayBeRefused && this.#isOutsider && path.includes('/team/'))
      this.#wrong(path, reply, 'an outsider was served');
    if (status < 400 && broken && isCalm && !onData)
      this.#wrong(path, reply, `broken off after ${body.length} bytes`);
    if (status < 400) return;
    if (!broken && body.length > 0 && !/^\{"errors":\[\{"code":"[A-Z_]+"/.test(body.toString('utf8', 0, 80)))
      this.#wrong(path, reply, 'an error in no form');
    const isExpected = mayBeRefused ? [400, 403, 404].includes(status) : false;
    if (!isExpected && (isCalm || !refusals.has(status))) this.#wrong(path, reply, 'refused');
  }

  #isCalmSince(ms: number): boolean {
    return this.#around.calmSince < ms && this.#around.subject.isUp;
  }

  #wrong(path: string, reply: Reply, what: string): void {
    const { status, headers, body } = reply;
    const said = status >= 400 ? ` ${body.toString('utf8', 0, 300)}` : '';
    const cache = `${String(headers['x-cache'])}/${String(headers['x-cache-reason'])}`;
    this.#around.findings.add(`${path}: ${what} (${status} ${cache})${said}`);
  }
}

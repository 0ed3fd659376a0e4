import { once } from 'node:events';
import {
  createServer,
  type IncomingHttpHeaders,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from 'node:http';
import type { AddressInfo } from 'node:net';
import { ociIndex, type Blob, type Image, type Manifest } from './images.ts';

export type Kind = 'ping' | 'manifest' | 'blob' | 'tags' | 'referrers' | 'token' | 'cdn' | 'other';

export interface Call {
  readonly kind: Kind;
  readonly method: string;
  readonly repo: string;
  /** Tag, digest or token scope. */
  readonly reference: string;
  readonly url: string;
  readonly headers: IncomingHttpHeaders;
  status: number;
  /** Bytes of the body handed to the connection. */
  sent: number;
}

export interface UpstreamOptions {
  auth?: 'none' | 'bearer' | 'basic';
  /** Redirects blobs to another origin. */
  cdn?: boolean;
  /** The only login with access. */
  login?: Login;
  /** Several logins with access. */
  logins?: readonly Login[];
  /** Public repos need no login. */
  anonymous?: boolean;
  tokenLifeSeconds?: number;
  /** Has the referrers API. */
  referrers?: boolean;
  /** Pulls per account and window. */
  pulls?: number;
}

export interface Login {
  readonly username: string;
  readonly password: string;
}

const windowSeconds = 21_600;

/** Replaces the answer to a call; `next` gives the normal answer. */
export type Script = (
  call: Call,
  req: IncomingMessage,
  res: ServerResponse,
  next: () => void,
) => void | Promise<void>;

interface Rule {
  readonly kind: Kind;
  readonly match: (call: Call) => boolean;
  readonly script: Script;
  times: number;
}

/** A registry, token server and CDN on real sockets, which record every call and misbehave as scripted. */
export class Upstream {
  readonly calls: Call[] = [];
  readonly tokens = new Set<string>();
  /** User with access, by private repo. */
  readonly permittedUsers = new Map<string, string>();
  /** Spent pulls by account. */
  readonly spent = new Map<string, number>();
  /** Refused pulls. */
  overspent = 0;
  readonly #options: UpstreamOptions;
  readonly #repos = new Map<
    string,
    { tags: Map<string, Manifest>; manifests: Map<string, Manifest>; blobs: Map<string, Blob> }
  >();
  readonly #rules: Rule[] = [];
  readonly #servers: Server[];
  #ports: number[] = [];

  private constructor(options: UpstreamOptions) {
    this.#options = options;
    this.#servers = [
      createServer((req, res) => this.#registry(req, res)),
      createServer((req, res) => this.#token(req, res)),
      createServer((req, res) => this.#cdn(req, res)),
    ];
  }

  static async start(options: UpstreamOptions = {}): Promise<Upstream> {
    const upstream = new Upstream(options);
    await upstream.resume();
    return upstream;
  }

  get url(): string {
    return `http://127.0.0.1:${this.#ports[0] ?? 0}`;
  }

  /** Another origin on the same host. */
  get cdnUrl(): string {
    return `http://localhost:${this.#ports[2] ?? 0}`;
  }

  get realm(): string {
    return `http://127.0.0.1:${this.#ports[1] ?? 0}/token`;
  }

  /** Starts listening; after `stop`, on the same ports. */
  async resume(): Promise<void> {
    for (const [i, server] of this.#servers.entries()) {
      server.listen(this.#ports[i] ?? 0);
      await once(server, 'listening');
      this.#ports[i] = (server.address() as AddressInfo).port;
    }
  }

  async stop(): Promise<void> {
    for (const server of this.#servers) {
      if (!server.listening) continue;
      const closed = once(server, 'close');
      server.close();
      server.closeAllConnections();
      await closed;
    }
  }

  addBlob(repo: string, blob: Blob): void {
    this.#repo(repo).blobs.set(blob.digest, blob);
  }

  addManifest(repo: string, manifest: Manifest, tag?: string): void {
    this.#repo(repo).manifests.set(manifest.digest, manifest);
    if (tag !== undefined) this.#repo(repo).tags.set(tag, manifest);
  }

  addImage(repo: string, image: Image, tag?: string): void {
    for (const blob of [image.config, ...image.layers]) this.addBlob(repo, blob);
    this.addManifest(repo, image.manifest, tag);
  }

  blob(repo: string, digest: string): Blob | undefined {
    return this.#repos.get(repo)?.blobs.get(digest);
  }

  removeTag(repo: string, tag: string): void {
    this.#repo(repo).tags.delete(tag);
  }

  /** Scripts matching calls, or only the next `times` of them. */
  script(
    kind: Kind,
    script: Script,
    { times = Infinity, match = () => true }: { times?: number; match?: (call: Call) => boolean } = {},
  ): void {
    this.#rules.push({ kind, script, match, times });
  }

  behave(): void {
    this.#rules.length = 0;
  }

  count(kind: Kind, match: Partial<Pick<Call, 'method' | 'repo' | 'reference' | 'status'>> = {}): number {
    return this.calls.filter(
      (call) =>
        call.kind === kind &&
        Object.entries(match).every(([key, value]) => call[key as keyof Call] === value),
    ).length;
  }

  /** Blob bytes sent to the mirror. */
  get blobBytes(): number {
    return this.calls
      .filter(({ kind, status }) => (kind === 'blob' || kind === 'cdn') && status < 300)
      .reduce((sum, { sent }) => sum + sent, 0);
  }

  forget(): void {
    this.calls.length = 0;
  }

  #repo(name: string) {
    let repo = this.#repos.get(name);
    if (!repo) {
      repo = { tags: new Map(), manifests: new Map(), blobs: new Map() };
      this.#repos.set(name, repo);
    }
    return repo;
  }

  #begin(req: IncomingMessage, res: ServerResponse, kind: Kind, repo: string, reference: string): Call {
    const call: Call = {
      kind,
      method: req.method ?? '',
      repo,
      reference,
      url: req.url ?? '',
      headers: req.headers,
      status: 0,
      sent: 0,
    };
    this.calls.push(call);
    const writeHead = res.writeHead.bind(res) as (...args: unknown[]) => ServerResponse;
    res.writeHead = (status: number, ...rest: unknown[]) => {
      call.status = status;
      return writeHead(status, ...rest);
    };
    return call;
  }

  #run(call: Call, req: IncomingMessage, res: ServerResponse, answer: () => void): void {
    const rule = this.#rules.find((each) => each.kind === call.kind && each.times > 0 && each.match(call));
    if (!rule) {
      answer();
      return;
    }
    rule.times -= 1;
    void rule.script(call, req, res, answer);
  }

  #registry(req: IncomingMessage, res: ServerResponse): void {
    const path = (req.url ?? '').split('?')[0] ?? '';
    const [, repo = '', what = '', reference = ''] =
      /^\/v2\/(.+)\/(manifests|blobs|tags|referrers)\/([^/]+)$/.exec(path) ?? [];
    const kinds: Record<string, Kind> = {
      manifests: 'manifest',
      blobs: 'blob',
      tags: 'tags',
      referrers: 'referrers',
    };
    const kind = kinds[what] ?? (path === '/v2/' ? 'ping' : 'other');
    const call = this.#begin(req, res, kind, repo, reference);
    this.#run(call, req, res, () => {
      if (!this.#isAllowed(req, repo)) this.#challenge(res, repo);
      else if (kind === 'ping')
        send(call, req, res, 200, Buffer.from('{}'), { 'content-type': 'application/json' });
      else if (kind === 'manifest') this.#manifest(call, req, res);
      else if (kind === 'blob') this.#blob(call, req, res);
      else if (kind === 'tags') this.#tags(call, req, res);
      else if (kind === 'referrers' && this.#options.referrers) this.#referrers(call, req, res);
      else sendError(call, req, res, 404, 'NOT_LISTED');
    });
  }

  #isAllowed(req: IncomingMessage, repo: string): boolean {
    const { auth = 'none', login } = this.#options;
    const given = req.headers.authorization;
    if (auth === 'none') return true;
    if (auth === 'basic') return given === basic(login);
    const permitted = this.permittedUsers.get(repo);
    if (permitted !== undefined && holderOf(given) !== permitted) return false;
    return (
      this.tokens.has(`${given ?? ''} ${repo}`) || (repo === '' && given?.startsWith('Bearer ') === true)
    );
  }

  #challenge(res: ServerResponse, repo: string): void {
    const scope = repo === '' ? '' : `,scope="repository:${repo}:pull"`;
    const bearer = `Bearer realm="${this.realm}",service="scripted"${scope}`;
    res.writeHead(401, {
      'www-authenticate': this.#options.auth === 'basic' ? 'Basic realm="scripted"' : bearer,
    });
    res.end('{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}');
  }

  #manifest(call: Call, req: IncomingMessage, res: ServerResponse): void {
    const repo = this.#repo(call.repo);
    const manifest = repo.tags.get(call.reference) ?? repo.manifests.get(call.reference);
    if (!manifest) {
      sendError(call, req, res, 404, 'MANIFEST_UNKNOWN');
      return;
    }
    const quota = this.#spend(call);
    if (quota['ratelimit-remaining']?.startsWith('-')) {
      this.overspent += 1;
      sendError(call, req, res, 429, 'TOOMANYREQUESTS', {
        ...quota,
        'ratelimit-remaining': `0;w=${windowSeconds}`,
      });
      return;
    }
    send(call, req, res, 200, manifest.bytes, {
      'content-type': manifest.mediaType,
      'docker-content-digest': manifest.digest,
      'set-cookie': 'spy=1',
      ...quota,
    });
  }

  /** Counts a GET as a pull; returns the `ratelimit-*` headers. */
  #spend({ method, headers }: Call): Record<string, string> {
    const { pulls } = this.#options;
    if (pulls === undefined) return {};
    const account = holderOf(headers.authorization);
    const before = this.spent.get(account) ?? 0;
    if (method === 'GET' && before < pulls) this.spent.set(account, before + 1);
    const left = pulls - before - (method === 'GET' ? 1 : 0);
    return {
      'ratelimit-limit': `${pulls};w=${windowSeconds}`,
      'ratelimit-remaining': `${left};w=${windowSeconds}`,
      'docker-ratelimit-source': '192.0.2.1',
    };
  }

  #blob(call: Call, req: IncomingMessage, res: ServerResponse): void {
    const blob = this.#repo(call.repo).blobs.get(call.reference);
    if (!blob) sendError(call, req, res, 404, 'BLOB_UNKNOWN');
    else if (this.#options.cdn) {
      res.writeHead(307, {
        location: `${this.cdnUrl}/${call.repo}/${call.reference}?signature=s3cr3t-query`,
      });
      res.end();
    } else sendRange(call, req, res, blob.bytes);
  }

  #tags(call: Call, req: IncomingMessage, res: ServerResponse): void {
    const repo = this.#repos.get(call.repo);
    if (!repo) {
      sendError(call, req, res, 404, 'NAME_UNKNOWN');
      return;
    }
    const query = new URL(call.url, 'http://registry').searchParams;
    const all = [...repo.tags.keys()].sort().filter((tag) => tag > (query.get('last') ?? ''));
    const tags = all.slice(0, Number(query.get('n') ?? Infinity));
    const next = `</v2/${call.repo}/tags/list?last=${tags.at(-1) ?? ''}&n=${tags.length}>; rel="next"`;
    send(call, req, res, 200, Buffer.from(JSON.stringify({ name: call.repo, tags })), {
      'content-type': 'application/json; charset=utf-8',
      ...(tags.length < all.length && { link: next }),
    });
  }

  #referrers(call: Call, req: IncomingMessage, res: ServerResponse): void {
    const type = new URL(call.url, 'http://registry').searchParams.get('artifactType');
    const manifests = [...this.#repo(call.repo).manifests.values()].flatMap(
      ({ bytes, digest, mediaType }) => {
        const { subject, artifactType } = JSON.parse(bytes.toString()) as {
          subject?: { digest: string };
          artifactType?: string;
        };
        const isMeant = subject?.digest === call.reference && (type === null || artifactType === type);
        return isMeant ? [{ mediaType, digest, size: bytes.length, artifactType }] : [];
      },
    );
    const body = JSON.stringify({ schemaVersion: 2, mediaType: ociIndex, manifests });
    send(call, req, res, 200, Buffer.from(body), {
      'content-type': ociIndex,
      ...(type !== null && { 'oci-filters-applied': 'artifactType' }),
    });
  }

  #token(req: IncomingMessage, res: ServerResponse): void {
    const url = new URL(req.url ?? '', 'http://token');
    const scope = url.searchParams.get('scope') ?? '';
    const repo = scope.split(':')[1] ?? '';
    const call = this.#begin(req, res, 'token', repo, scope);
    this.#run(call, req, res, () => {
      const { login, logins = login ? [login] : [], anonymous, tokenLifeSeconds = 300 } = this.#options;
      const given = req.headers.authorization;
      const known = logins.find((each) => given === basic(each));
      const isNobody = given === undefined && (anonymous === true || logins.length === 0);
      if (!known && !isNobody) {
        sendError(call, req, res, 401, 'UNAUTHORIZED');
        return;
      }
      const token = `s3cr3t-token-${this.tokens.size}-${known?.username ?? 'anonymous'}`;
      this.tokens.add(`Bearer ${token} ${repo}`);
      const body = JSON.stringify({ token, expires_in: tokenLifeSeconds });
      send(call, req, res, 200, Buffer.from(body), { 'content-type': 'application/json' });
    });
  }

  #cdn(req: IncomingMessage, res: ServerResponse): void {
    const path = (req.url ?? '').split('?')[0] ?? '';
    const [, repo = '', digest = ''] = /^\/(.+)\/([^/]+)$/.exec(path) ?? [];
    const call = this.#begin(req, res, 'cdn', repo, digest);
    this.#run(call, req, res, () => {
      const blob = this.#repo(repo).blobs.get(digest);
      if (req.headers.authorization !== undefined) sendError(call, req, res, 400, 'TWO_AUTH_MECHANISMS');
      else if (blob) sendRange(call, req, res, blob.bytes);
      else sendError(call, req, res, 404, 'NOT_LISTED');
    });
  }
}

/** The user of a token. */
function holderOf(authorization: string | undefined): string {
  return authorization?.split('-').at(-1) ?? 'anonymous';
}

function basic(login: UpstreamOptions['login']): string {
  return `Basic ${Buffer.from(`${login?.username ?? ''}:${login?.password ?? ''}`).toString('base64')}`;
}

function send(
  call: Call,
  req: IncomingMessage,
  res: ServerResponse,
  status: number,
  body: Buffer,
  headers: Record<string, string>,
): void {
  res.writeHead(status, { 'content-length': body.length, ...headers });
  if (req.method === 'HEAD') {
    res.end();
    return;
  }
  call.sent += body.length;
  res.end(body);
}

function sendError(
  call: Call,
  req: IncomingMessage,
  res: ServerResponse,
  status: number,
  code: string,
  headers: Record<string, string> = {},
): void {
  send(call, req, res, status, Buffer.from(JSON.stringify({ errors: [{ code, message: code }] })), {
    'content-type': 'application/json',
    ...headers,
  });
}

function sendRange(call: Call, req: IncomingMessage, res: ServerResponse, bytes: Buffer): void {
  const [, first, last] = /^bytes=(\d+)-(\d*)$/.exec(req.headers.range ?? '') ?? [];
  const headers = { 'content-type': 'application/octet-stream', 'accept-ranges': 'bytes' };
  if (first === undefined) {
    send(call, req, res, 200, bytes, headers);
    return;
  }
  const start = Number(first);
  if (start >= bytes.length) {
    send(call, req, res, 416, Buffer.alloc(0), { ...headers, 'content-range': `bytes */${bytes.length}` });
    return;
  }
  const end = last ? Math.min(Number(last) + 1, bytes.length) : bytes.length;
  const range = `bytes ${start}-${end - 1}/${bytes.length}`;
  send(call, req, res, 206, bytes.subarray(start, end), { ...headers, 'content-range': range });
}

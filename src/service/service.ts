import { randomBytes } from 'node:crypto';
import type { RequestListener, Server } from 'node:http';
import { Server as TlsServer } from 'node:https';
import type { Address } from '../config/schema.ts';
import type { Config } from '../config/types.ts';
import { Access } from '../mirror/access/links.ts';
import { Fills } from '../mirror/fill/fills.ts';
import { Prefetch } from '../mirror/fill/prefetch.ts';
import { Mirror } from '../mirror/mirror.ts';
import { Lists } from '../mirror/tags/lists.ts';
import { Tags } from '../mirror/tags/tags.ts';
import { Upstreams } from '../mirror/upstreams.ts';
import { blobMediaType } from '../oci/content.ts';
import { createAdminApp, type Readiness } from '../server/admin.ts';
import { createRegistryApp } from '../server/app.ts';
import { Clients } from '../server/clients.ts';
import { closeHttpServer, createHttpServer } from '../server/http-server.ts';
import { followTls, readTls } from '../server/tls.ts';
import { BlobStore } from '../store/blob-store.ts';
import type { Damaged } from '../store/context.ts';
import { Ledger } from '../telemetry/ledger.ts';
import { createLog, type LineSink, type Log } from '../telemetry/log.ts';
import { Metrics } from '../telemetry/metrics.ts';
import { Budget } from '../util/budget.ts';
import { systemClock, type Clock } from '../util/clock.ts';
import { IdleCollection } from '../util/garbage.ts';
import { version } from '../version.ts';
import { adminOf, clientsOptionsOf, fillsOptionsOf, mirrorSettingsOf, storeLimitsOf } from './from-config.ts';
import { boundAddress, listen, reachableAddress, showAddress } from './listening.ts';
import { LiveConfig } from './live-config.ts';
import { readingsOf } from './readings.ts';
import { buildUpstreams, keptUpstreams, type UpstreamsContext } from './upstreams-from-config.ts';

const drainMs = 30_000;
const writeBehindMs = 5000;
/** Each may hold two buffers of 32 KiB and two sockets. */
const maxRequests = 4096;
/** Of manifests and lists that are being read or are on their way to the disk. */
const documentBytes = 32 * 1024 * 1024;
export interface ServiceOptions {
  clock?: Clock;
  /** Instead of standard output. */
  logSink?: LineSink;
}

/** Everything put together: build, start, drain, stop. */
export class Service {
  readonly log: Log;
  readonly #live: LiveConfig;
  readonly #store: BlobStore;
  readonly #upstreams: Upstreams;
  readonly #upstreamsContext: UpstreamsContext;
  readonly #clients: Clients;
  readonly #access: Access;
  readonly #tags: Tags;
  readonly #fills: Fills;
  readonly #mirror: Mirror;
  readonly #prefetch: Prefetch;
  readonly #registry: Server;
  readonly #admin: Server | undefined;
  readonly #ledger: Ledger;
  readonly #writer: NodeJS.Timeout;
  readonly #stopping = new AbortController();
  #draining = false;
  #unfollowTls: () => void = () => undefined;
  #reconciled: Promise<void> = Promise.resolve();

  /** Throws when the data directory or an address cannot be used. Whether an upstream can be reached does not matter. */
  static async start(config: Config, options: ServiceOptions = {}): Promise<Service> {
    const live = new LiveConfig(config);
    const metrics = new Metrics();
    const onDropped = (lines: number): void => metrics.logLinesDropped.add(lines);
    const log = createLog(config.log, { sink: options.logSink, onDropped });
    const clock = options.clock ?? systemClock;
    // It is made after the store, and told by it.
    const built: { service?: Service } = {};
    const store = await BlobStore.open(
      { path: config.store.path, limits: live.view(storeLimitsOf) },
      {
        clock,
        log: log.events,
        onEvicted: (reason) => metrics.evictions.add(1, reason),
        onPruned: (table, rows) => metrics.catalogPruned.add(rows, table),
        onDamaged: (damaged) => {
          metrics.damagedBlobs.add(1);
          built.service?.restore(damaged);
        },
        onTagChanged: (registry, repo, tag) => {
          if (built.service) built.service.#tags.forget(`${registry}/${repo}:${tag}`);
        },
      },
    );
    const service = new Service(live, { log, clock, metrics, store });
    built.service = service;
    try {
      await service.#listen();
    } catch (error) {
      await service.stop();
      throw error;
    }
    return service;
  }

  private constructor(
    live: LiveConfig,
    parts: { log: Log; clock: Clock; metrics: Metrics; store: BlobStore },
  ) {
    const { log, clock, metrics, store } = parts;
    const config = live.now;
    this.#live = live;
    this.log = log;
    this.#store = store;
    this.#ledger = new Ledger(clock, store.catalog.ledger, (error) => this.#notWritten(error));
    const pseudonym = `layercache-${randomBytes(8).toString('hex')}`;
    this.#upstreamsContext = {
      clock,
      metrics,
      log: log.events,
      ledger: this.#ledger,
      catalog: store.catalog,
      pseudonym,
      documents: new Budget(documentBytes),
      live,
    };
    this.#upstreams = new Upstreams(buildUpstreams(config, this.#upstreamsContext));
    this.#clients = new Clients(clientsOptionsOf(config), { clock, log: log.events });
    const garbage = new IdleCollection();
    this.#writer = setInterval(() => {
      this.#writeBehind();
      garbage.look();
    }, writeBehindMs).unref();
    const settings = live.view(mirrorSettingsOf);
    const access = new Access(store.catalog, clock, log.events, () => settings().tags);
    this.#access = access;
    this.#withdraw();
    const upstreams = this.#upstreams;
    const fills = new Fills(live.view(fillsOptionsOf), {
      store,
      access,
      clock,
      log: log.events,
      upstreams,
      onFault: ({ fault }) => metrics.faults.add(1, fault),
    });
    this.#fills = fills;
    const prefetch = new Prefetch({
      isOn: () => live.now.fetch.prefetch === 'chain',
      store,
      fills,
      receivedBytes: () => metrics.upstreamBytes.total,
      onSkipped: (layers) => metrics.prefetchSkipped.add(layers),
      onOutcome: (bytes, used) => metrics.prefetchedBytes.add(bytes, used ? 'yes' : 'no'),
    });
    this.#prefetch = prefetch;
    const tags = new Tags(store.catalog, clock, log.events, (prefix) => store.holds(prefix));
    this.#tags = tags;
    this.#mirror = new Mirror(settings, { clock, store, access, fills, tags, upstreams, prefetch });
    const lists = new Lists(settings, { store, upstreams, clock, log: log.events });
    metrics.show(readingsOf({ live, upstreams, ledger: this.#ledger, fills, store }));
    const isDraining = (): boolean => this.#draining;
    const context = {
      clients: this.#clients,
      mirror: this.#mirror,
      lists,
      upstreams: this.#upstreams,
      clock,
      log,
      metrics,
      ledger: this.#ledger,
      isDraining,
      maxRequests,
      pseudonym,
      whenSpent: () => live.now.quota.whenSpent,
    };
    this.#registry = createHttpServer(createRegistryApp(context), { tls: config.tls });
    this.#clients.watch(this.#registry);
    this.#followTls(false);
    this.#followConfig();
    if (config.adminListen) {
      this.#admin = createHttpServer(
        createAdminApp({
          ...adminOf(live, store),
          metrics,
          log: log.events,
          isDraining,
          readiness: () => this.#readiness(),
        }) as RequestListener,
      );
    }
  }

  /** Where the registry API is listening. */
  get address(): Address {
    return boundAddress(this.#registry);
  }

  get adminAddress(): Address | undefined {
    return this.#admin && boundAddress(this.#admin);
  }

  /** Resolves when directory and catalog have been made to agree. */
  get reconciled(): Promise<void> {
    return this.#reconciled;
  }

  /** Takes over what may change while it runs, and logs what may not. Throws when it cannot be used: then nothing changes. */
  reload(next: Config): void {
    const waiting = this.#live.replace(next);
    this.log.events.info('the configuration was read again');
    if (waiting.length > 0)
      this.log.events.warn({ keys: waiting }, 'these keys have changed and take effect at the next start');
    this.#warn();
  }

  /** What has to be done when the configuration changes; all else reads it at each use. */
  #followConfig(): void {
    const live = this.#live;
    live.onChange((next) => {
      if (next.tls) readTls(next.tls);
      return () => this.#followTls(true);
    });
    live.onChange((next) => this.#clients.prepare(clientsOptionsOf(next)));
    live.onChange((next, before) => () => {
      // Accounts that are made anew read there what they have left.
      this.#writeBehind();
      const kept = keptUpstreams(before, next, this.#upstreams);
      this.#upstreams.replace(buildUpstreams(next, this.#upstreamsContext, kept));
      this.#withdraw();
    });
    live.onChange((next) => () => this.log.setLevel(next.log.level));
    live.onChange(() => () => this.#store.limitsChanged());
  }

  /** Stops accepting, lets running answers finish for up to 30 s, and leaves everything in order. Twice is fine. */
  async stop(): Promise<void> {
    if (this.#draining) return;
    this.#draining = true;
    this.#stopping.abort();
    const closed = Promise.all(
      [this.#registry, this.#admin].flatMap((server) => (server ? closeHttpServer(server) : [])),
    );
    this.#prefetch.stop();
    const idle = this.#fills.stop('idle');
    const timer = setTimeout(() => {
      this.#registry.closeAllConnections();
      this.#admin?.closeAllConnections();
    }, drainMs);
    await closed;
    clearTimeout(timer);
    await Promise.all([idle, this.#fills.stop('all')]);
    await this.#upstreams.close();
    this.#unfollowTls();
    await this.#clients.close();
    await this.#reconciled;
    clearInterval(this.#writer);
    this.#writeBehind();
    await this.#store.close();
    this.log.events.info('stopped');
    await this.log.close();
  }

  /** What of the mirror does not work now. */
  #readiness(): Readiness {
    const obstacles = this.#upstreams.all.map(({ obstacle }) => obstacle);
    const reasons = [this.#store.trouble, ...obstacles].filter((each) => each !== undefined);
    return { reasons, canServe: !this.#store.health.isGone || obstacles.includes(undefined) };
  }

  /** What is public in the catalog may have come from an upstream that is private by now. */
  #withdraw(): void {
    this.#access.withdraw((registry) => this.#upstreams.isPrivate(registry));
  }

  /** `isNew`: its files are not those that the server was made with. */
  #followTls(isNew: boolean): void {
    this.#unfollowTls();
    const { tls } = this.#live.now;
    const server: Server | TlsServer = this.#registry;
    if (!tls || !(server instanceof TlsServer)) return;
    if (isNew) (server as TlsServer).setSecureContext(readTls(tls));
    this.#unfollowTls = followTls(server as TlsServer, tls, this.log.events);
  }

  /** What is allowed, and better not so. */
  #warn(): void {
    const { clients, tls, trustedProxies, upstreams, families, idlePatterns } = this.#live.now;
    for (const { registry, insecureSkipVerify } of [...upstreams, ...families]) {
      if (insecureSkipVerify)
        this.log.events.warn(
          { registry },
          'insecureSkipVerify: TLS verification is off: a man in the middle can impersonate the upstream',
        );
    }
    for (const key of idlePatterns)
      this.log.events.warn({ key }, 'a pattern begins with a registry that is not configured');
    if (clients.htpasswd !== undefined && !tls && !trustedProxies)
      this.log.events.warn('clients.htpasswd without tls: passwords cross the network in the clear');
  }

  async #listen(): Promise<void> {
    await listen(this.#registry, this.#live.now.listen);
    if (this.#admin && this.#live.now.adminListen) await listen(this.#admin, this.#live.now.adminListen);
    const { events } = this.log;
    const url = `${this.#live.now.tls ? 'https' : 'http'}://${reachableAddress(this.address)}`;
    events.info(`put { "registry-mirrors": ["${url}"] } into /etc/docker/daemon.json of each Docker host`);
    events.info(
      {
        version,
        listen: showAddress(this.address),
        admin: this.adminAddress ? showAddress(this.adminAddress) : 'off',
        store: this.#live.now.store.path,
        upstreams: [...this.#live.now.upstreams, ...this.#live.now.families].map(({ registry }) => registry),
      },
      'layercache is ready',
    );
    this.#warn();
    for (const name of this.#live.now.ignoredVariables) {
      events.warn({ variable: name }, 'an environment variable names no key of the configuration');
    }
    this.#reconciled = this.#store.reconcile(this.#stopping.signal).then(
      (found) => {
        if (found.strayFiles + found.lostBlobs > 0) events.warn(found, 'mended what a crash had left behind');
      },
      (error: unknown) => events.error({ err: error }, 'the data directory could not be checked'),
    );
  }

  /** What is pinned is to be there: it is fetched again at once, the rest when somebody asks. */
  restore({ digest, mediaType, pinnedFor }: Damaged): void {
    if (!pinnedFor || this.#draining) return;
    const fetch = async (): Promise<void> => {
      const repo = this.#upstreams.repoNamed(pinnedFor.registry, pinnedFor.repo);
      const asked = { method: 'GET', client: '' } as const;
      const { content } = await (mediaType === blobMediaType
        ? this.#mirror.blob(repo, digest, asked, 'whole')
        : this.#mirror.manifest(repo, { digest }, asked));
      content?.release();
    };
    fetch().catch((error: unknown) =>
      this.log.events.warn({ err: error, digest }, 'what is pinned could not be fetched again'),
    );
  }

  /** What was spent, and what is left. */
  #writeBehind(): void {
    this.#ledger.flush();
    const { catalog } = this.#store;
    for (const { registry, accounts } of this.#upstreams.all) {
      try {
        accounts.save((account, state) => {
          if (state) catalog.quotas.set(registry, account, state);
          else catalog.quotas.remove(registry, account);
        });
      } catch (error) {
        this.#notWritten(error);
      }
    }
  }

  #notWritten(error: unknown): void {
    this.log.events.warn({ err: error }, 'what was spent could not be written down; it is tried again');
  }
}

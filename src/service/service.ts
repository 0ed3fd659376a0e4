import type { RequestListener, Server } from 'node:http';
import { Server as TlsServer } from 'node:https';
import type { Address } from '../config/schema.ts';
import type { Config } from '../config/types.ts';
import { createAdminApp, type Readiness } from '../server/admin.ts';
import { createRegistryApp } from '../server/app.ts';
import { closeHttpServer, createHttpServer } from '../server/http-server.ts';
import { followTls, readTls } from '../server/tls.ts';
import { createLog, type LineSink, type Log } from '../telemetry/log.ts';
import { Metrics } from '../telemetry/metrics.ts';
import { systemClock, type Clock } from '../util/clock.ts';
import { IdleCollection } from '../util/garbage.ts';
import { version } from '../version.ts';
import { assemble, type Parts } from './assembly.ts';
import { adminOf, clientsOptionsOf, storeLimitsOf } from './from-config.ts';
import { boundAddress, listen, reachableAddress, showAddress } from './listening.ts';
import { LiveConfig } from './live-config.ts';
import { buildUpstreams, keptUpstreams } from './upstreams-from-config.ts';

const drainMs = 30_000;
const writeBehindMs = 5000;
/** Concurrent requests; each may hold two 32 KiB buffers and two sockets. */
const maxRequests = 4096;

export interface ServiceOptions {
  clock?: Clock;
  /** Replaces standard output. */
  logSink?: LineSink;
}

/** A running mirror: start, reload, stop. */
export class Service {
  readonly log: Log;
  readonly #live: LiveConfig;
  readonly #parts: Parts;
  readonly #registry: Server;
  readonly #admin: Server | undefined;
  readonly #writer: NodeJS.Timeout;
  readonly #stopping: AbortController;
  #unfollowTls: () => void = () => undefined;
  #reconciled: Promise<void> = Promise.resolve();

  /** Throws if the data directory or an address is unusable. Does not contact upstreams. */
  static async start(config: Config, options: ServiceOptions = {}): Promise<Service> {
    const live = new LiveConfig(config);
    const metrics = new Metrics();
    const onDropped = (lines: number): void => metrics.logLinesDropped.add(lines);
    const log = createLog(config.log, { sink: options.logSink, onDropped });
    const stopping = new AbortController();
    const clock = options.clock ?? systemClock;
    const parts = await assemble(live, { clock, log, metrics }, stopping.signal);
    const service = new Service(live, parts, stopping);
    try {
      await service.#listen();
    } catch (error) {
      await service.stop();
      throw error;
    }
    return service;
  }

  private constructor(live: LiveConfig, parts: Parts, stopping: AbortController) {
    const { clients, log, metrics, store } = parts;
    const { tls, adminListen } = live.now;
    this.#live = live;
    this.#parts = parts;
    this.#stopping = stopping;
    this.log = log;
    this.#revokePublicAccess();
    const garbage = new IdleCollection();
    this.#writer = setInterval(() => {
      this.#writeBehind();
      garbage.check();
    }, writeBehindMs).unref();
    const isDraining = (): boolean => this.#isDraining;
    const whenSpent = (): 429 | 503 => live.now.quota.whenSpent;
    const app = createRegistryApp({ ...parts, isDraining, maxRequests, whenSpent });
    this.#registry = createHttpServer(app, { tls });
    clients.watch(this.#registry);
    this.#followTls(false);
    this.#followConfig();
    if (!adminListen) return;
    const readiness = (): Readiness => this.#readiness();
    const admin = { ...adminOf(live, store), metrics, log: log.events, isDraining, readiness };
    this.#admin = createHttpServer(createAdminApp(admin) as RequestListener);
  }

  /** Bound address of the registry API. */
  get address(): Address {
    return boundAddress(this.#registry);
  }

  get adminAddress(): Address | undefined {
    return this.#admin && boundAddress(this.#admin);
  }

  /** Resolves when the start-up check of data directory against catalog is done. */
  get reconciled(): Promise<void> {
    return this.#reconciled;
  }

  /** Applies a new configuration, and logs changed keys that need a restart. Throws and changes nothing if it is invalid. */
  async reload(next: Config): Promise<void> {
    const needRestart = await this.#live.replace(next);
    this.log.events.info('configuration reloaded');
    if (needRestart.length > 0)
      this.log.events.warn({ keys: needRestart }, 'changes of these keys take effect after a restart');
    this.#warn();
  }

  /** Stops accepting, gives running responses 30 s to finish, and closes the store. Idempotent. */
  async stop(): Promise<void> {
    if (this.#isDraining) return;
    this.#stopping.abort();
    const { prefetch, fills, upstreams, clients, store } = this.#parts;
    const closed = Promise.all(
      [this.#registry, this.#admin].flatMap((server) => (server ? closeHttpServer(server) : [])),
    );
    prefetch.stop();
    const idle = fills.stop('idle');
    const timer = setTimeout(() => {
      this.#registry.closeAllConnections();
      this.#admin?.closeAllConnections();
    }, drainMs);
    await closed;
    clearTimeout(timer);
    await Promise.all([idle, fills.stop('all')]);
    await upstreams.close();
    this.#unfollowTls();
    await clients.close();
    await this.#reconciled;
    clearInterval(this.#writer);
    this.#writeBehind();
    await store.close();
    this.log.events.info('stopped');
    await this.log.close();
  }

  get #isDraining(): boolean {
    return this.#stopping.signal.aborted;
  }

  /** Registers the parts that must act when the configuration changes; others read it at each use. */
  #followConfig(): void {
    const live = this.#live;
    const { clients, store, upstreams, upstreamsContext } = this.#parts;
    live.onChange(({ tls }) => {
      if (tls) readTls(tls);
      return { apply: () => this.#followTls(true) };
    });
    live.onChange((next) => clients.prepare(clientsOptionsOf(next)));
    live.onChange((next, before) => ({
      apply: () => {
        // New account objects read their quota from the catalog.
        this.#writeBehind();
        const kept = keptUpstreams(before, next, upstreams);
        upstreams.replace(buildUpstreams(next, upstreamsContext, kept));
        this.#revokePublicAccess();
        this.log.setLevel(next.log.level);
      },
    }));
    // Last: pins are pinned before a lower cap counts.
    live.onChange(async (next) => ({ apply: await store.prepare(storeLimitsOf(next)) }));
  }

  #readiness(): Readiness {
    const { upstreams, store } = this.#parts;
    const obstacles = upstreams.all.map(({ obstacle }) => obstacle);
    const reasons = [store.trouble, ...obstacles].filter((each) => each !== undefined);
    return { reasons, canServe: !store.health.isGone || obstacles.includes(undefined) };
  }

  /** Revokes public access to content of upstreams that are now private. */
  #revokePublicAccess(): void {
    const { links, upstreams } = this.#parts;
    links.withdraw((registry) => upstreams.isPrivate(registry));
  }

  /** Watches the TLS files. `isNew`: the configuration may name other files than at the start. */
  #followTls(isNew: boolean): void {
    this.#unfollowTls();
    const { tls } = this.#live.now;
    const server: Server | TlsServer = this.#registry;
    if (!tls || !(server instanceof TlsServer)) return;
    if (isNew) (server as TlsServer).setSecureContext(readTls(tls));
    this.#unfollowTls = followTls(server as TlsServer, tls, this.log.events);
  }

  /** Logs risky or ineffective settings. */
  #warn(): void {
    const { clients, tls, trustedProxies, upstreams, families, unmatchedPatterns } = this.#live.now;
    for (const { registry, insecureSkipVerify } of [...upstreams, ...families]) {
      if (insecureSkipVerify)
        this.log.events.warn(
          { registry },
          'insecureSkipVerify: TLS verification is off: a man in the middle can impersonate the upstream',
        );
    }
    for (const key of unmatchedPatterns)
      this.log.events.warn({ key }, 'a pattern names a registry that is not configured');
    if (clients.htpasswd !== undefined && !tls && !trustedProxies)
      this.log.events.warn('clients.htpasswd without tls: passwords cross the network unencrypted');
  }

  async #listen(): Promise<void> {
    const {
      listen: address,
      adminListen,
      tls,
      store,
      upstreams,
      families,
      ignoredVariables,
    } = this.#live.now;
    await listen(this.#registry, address);
    if (this.#admin && adminListen) await listen(this.#admin, adminListen);
    const { events } = this.log;
    const url = `${tls ? 'https' : 'http'}://${reachableAddress(this.address)}`;
    events.info(`put { "registry-mirrors": ["${url}"] } into /etc/docker/daemon.json of each Docker host`);
    events.info(
      {
        version,
        listen: showAddress(this.address),
        admin: this.adminAddress ? showAddress(this.adminAddress) : 'off',
        store: store.path,
        upstreams: [...upstreams, ...families].map(({ registry }) => registry),
      },
      'layercache is ready',
    );
    this.#warn();
    for (const name of ignoredVariables)
      events.warn({ variable: name }, 'an environment variable matches no configuration key');
    this.#reconciled = this.#parts.store.reconcile(this.#stopping.signal).then(
      (found) => {
        if (found.strayFiles + found.lostBlobs > 0) events.warn(found, 'removed leftovers of a crash');
      },
      (error: unknown) => events.error({ err: error }, 'the data directory could not be checked'),
    );
  }

  /** Writes the ledger and the account quotas to the catalog. */
  #writeBehind(): void {
    const { ledger, store, upstreams } = this.#parts;
    ledger.flush();
    const { quotas } = store.catalog;
    for (const { registry, accounts } of upstreams.all) {
      try {
        accounts.save((account, state) => {
          if (state) quotas.set(registry, account, state);
          else quotas.remove(registry, account);
        });
      } catch (error) {
        this.log.events.warn({ err: error }, 'quotas could not be written; retrying');
      }
    }
  }
}

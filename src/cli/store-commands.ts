import type { Command, Option } from 'commander';
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pino from 'pino';
import { request } from 'undici';
import type { Config } from '../config/types.ts';
import { patternOf } from '../oci/pattern.ts';
import { BlobStore } from '../store/blob-store.ts';
import { isCorrupt, openToRead } from '../store/catalog/catalog-file.ts';
import { Catalog, explain } from '../store/catalog/catalog.ts';
import { blobPath, blobsPath, catalogPath } from '../store/disk/layout.ts';
import { LockedError } from '../store/disk/lock.ts';
import { Verifier } from '../store/ingest/verifier.ts';
import { Inventory, type StoredBlob } from '../store/operations/inventory.ts';
import { storeOperations, type StoreOperations } from '../store/operations/operations.ts';
import { previewPurge } from '../store/operations/purge.ts';
import { listPins } from '../store/room/pins.ts';
import { findDamage } from '../store/upkeep/check.ts';
import { rebuildCatalog } from '../store/upkeep/rebuild.ts';
import { secretReader } from '../upstream/accounts/credentials.ts';
import { systemClock } from '../util/clock.ts';
import { OperationError } from '../util/errors.ts';
import { formatSize } from '../util/units.ts';

interface Output {
  readonly json?: boolean;
}

const progressEveryMs = 200;
/** In so much time whatever a mirror is removing is gone from its catalog too. */
const evictionMs = 2000;
/** At once in one call to a running mirror. */
const quarantineAtOnce = 1000;

/**
 * What operators do with a store. What only reads, reads the files beside a running mirror; what changes something asks that
 * mirror, or works on the files where none is running.
 */
export function addStoreCommands(
  program: Command,
  configOption: () => Option,
  readConfig: (file: string | undefined) => Config | undefined,
): void {
  // Whoever reads our output may have enough of it.
  process.stdout.on('error', () => process.exit(0));
  const store = program.command('store').description('look at what is stored, pin it, check it, purge it');
  const command = (usage: string, description: string): Command =>
    store.command(usage).description(description).addOption(configOption()).option('--json', 'for programs');
  const withConfig = <A extends unknown[]>(work: (config: Config, ...args: A) => Promise<void>) => {
    return async (...args: [...A, Command]): Promise<void> => {
      const { config: file } = (args.at(-1) as Command).opts<{ config?: string }>();
      const config = readConfig(file);
      if (!config) return;
      try {
        await work(config, ...(args as unknown as A));
      } catch (error) {
        process.stderr.write(`layercache: ${(error as Error).message}\n`);
        process.exitCode = 1;
      }
    };
  };

  command('usage', 'how much which repository takes, and since when').action(
    withConfig(async (config, { json }: Output) => {
      const usage = await withInventory(config, (inventory) => inventory.usage(Date.now()));
      if (json) print(usage);
      else {
        table(
          ['REPOSITORY', 'BLOBS', 'BYTES', 'SHARED', 'PINNED', '< 1 DAY', '< 7 DAYS', '< 30 DAYS', 'OLDER'],
          usage.repos.map((each) => [
            `${each.registry}/${each.repo}`,
            String(each.blobs),
            ...[
              each.bytes,
              each.sharedBytes,
              each.pinnedBytes,
              each.dayBytes,
              each.weekBytes,
              each.monthBytes,
              each.olderBytes,
            ].map(formatSize),
          ]),
        );
        const { blobs, bytes, pinnedBytes, unfinishedBytes } = usage;
        const cap = config.store.maxBytes === Infinity ? 'no cap' : `of ${formatSize(config.store.maxBytes)}`;
        write(
          `\n${blobs} blobs, ${formatSize(bytes)} ${cap}; pinned ${formatSize(pinnedBytes)}, unfinished ${formatSize(unfinishedBytes)}`,
        );
      }
    }),
  );

  command('list [pattern]', 'the tags that are known, and how much of them is held').action(
    withConfig(async (config, pattern: string | undefined, { json }: Output) => {
      const parsed = pattern === undefined ? undefined : patternOf(pattern);
      const tags = await withInventory(config, (inventory) => inventory.tags(parsed));
      if (json) print(tags);
      else {
        table(
          ['TAG', 'DIGEST', 'HELD', 'PINNED', 'CONFIRMED', 'LAST USED'],
          tags.map(({ registry, repo, tag, digest, heldBytes, isPinned, checkedAt, usedAt }) => [
            `${registry}/${repo}:${tag}`,
            digest.slice(0, 19),
            formatSize(heldBytes),
            isPinned ? 'yes' : '',
            showTime(checkedAt),
            usedAt === null ? '' : showTime(usedAt),
          ]),
        );
      }
    }),
  );

  command('purge <pattern>', 'forget what a pattern names, and put out what nothing else needs')
    .option('--dry-run', 'only say what would go')
    .action(
      withConfig(async (config, pattern: string, { json, dryRun }: Output & { dryRun?: boolean }) => {
        const purged = await (dryRun
          ? withCatalog(config, (catalog) => previewPurge(catalog, patternOf(pattern)))
          : withOperations(config, (operations) => operations.purge(pattern, false)));
        if (json) print(purged);
        else {
          const { tags, blobs, bytes, kept } = purged;
          const verb = dryRun ? 'would go' : 'gone';
          write(`${verb}: ${tags} tags, ${blobs} blobs, ${formatSize(bytes)}`);
          if (kept > 0) write(`kept, since they are pinned or in use: ${kept} blobs`);
        }
      }),
    );

  for (const verb of ['pin', 'unpin'] as const) {
    command(
      `${verb} <pattern>`,
      verb === 'pin' ? 'never evict what a pattern names' : 'take a pin back',
    ).action(
      withConfig(async (config, pattern: string, { json }: Output) => {
        const result = await withOperations(
          config,
          (operations) => operations[verb](pattern),
          verb === 'pin',
        );
        if (json) print(result);
        else write(`${formatSize(result.pinnedBytes)} are pinned`);
      }),
    );
  }

  command('pins', 'the patterns that are pinned').action(
    withConfig(async (config, { json }: Output) => {
      const added = await withInventory(config, (inventory) => inventory.pins());
      const pins = listPins(config.store.pins, added);
      if (json) print(pins);
      else
        table(
          ['PATTERN', 'BY'],
          pins.map(({ pattern, isConfigured }) => [pattern, isConfigured ? 'configuration' : 'command']),
        );
    }),
  );

  command('verify', 'read everything again; ends with 1 if something is wrong and was not repaired')
    .option('--repair', 'put aside what is wrong, so that it is fetched again')
    .action(
      withConfig(async (config, { json, repair }: Output & { repair?: boolean }) => {
        const { damaged, blobs, bytes } = await verify(config);
        let quarantined = 0;
        if (repair && damaged.length > 0) {
          await withOperations(config, async (operations) => {
            for (let at = 0; at < damaged.length; at += quarantineAtOnce) {
              const digests = damaged.slice(at, at + quarantineAtOnce).map(({ digest }) => digest);
              quarantined += (await operations.quarantine(digests)).quarantined;
            }
          });
        }
        if (json) print({ blobs, bytes, damaged, quarantined });
        else {
          for (const { digest, why } of damaged) write(`${digest}: ${why}`);
          write(
            `${blobs} blobs, ${formatSize(bytes)} read: ${damaged.length} damaged${repair ? `, ${quarantined} put aside` : ''}`,
          );
        }
        if (damaged.length > quarantined) process.exitCode = 1;
      }),
    );

  command('rebuild', 'make a new catalog from its backup and the files, with the mirror stopped').action(
    withConfig(async (config, { json }: Output) => {
      mustExist(config.store.path);
      const rebuilt = await rebuildCatalog(config.store.path, Date.now());
      if (json) print(rebuilt);
      else {
        const { base, found, lost, keptAs } = rebuilt;
        write(
          `made from ${base === 'nothing' ? 'the files alone' : `the ${base} and the files`}: ${found} files found, ${lost} lost`,
        );
        if (keptAs !== undefined) write(`the damaged one is ${keptAs}`);
      }
    }),
  );

  command('import <directory>', "take over the blobs of a registry:2's directory, or of its proxy's")
    .option('--registry <name>', 'the upstream that they belong to (default: defaultUpstream)')
    .action(
      withConfig(async (config, directory: string, { json, registry }: Output & { registry?: string }) => {
        const imported = await withOperations(
          config,
          (operations) => operations.import(resolve(directory), registry ?? config.defaultUpstream),
          true,
        );
        if (json) print(imported);
        else {
          const { blobs, bytes, known, tags, problems } = imported;
          for (const problem of problems) write(problem);
          write(
            `${blobs} blobs, ${formatSize(bytes)} and ${tags} tags taken over; ${known} blobs were here already`,
          );
        }
        if (imported.problems.length > 0) process.exitCode = 1;
      }),
    );
}

async function verify(
  config: Config,
): Promise<{ damaged: (StoredBlob & { why: string })[]; blobs: number; bytes: number }> {
  const suspects: StoredBlob[] = [];
  const damaged: (StoredBlob & { why: string })[] = [];
  const isWatched = process.stderr.isTTY;
  let blobs = 0;
  let bytes = 0;
  let shownAt = 0;
  const verifier = new Verifier();
  await withInventory(config, async (inventory) => {
    const total = inventory.totals().bytes;
    const show = (read: number): void => {
      bytes += read;
      const now = performance.now();
      if (!isWatched || now - shownAt < progressEveryMs) return;
      shownAt = now;
      const share = Math.min(1, bytes / Math.max(1, total));
      const bar = '#'.repeat(Math.round(30 * share)).padEnd(30);
      process.stderr.write(
        `\r[${bar}] ${Math.floor(100 * share)} % of ${formatSize(total)}, ${suspects.length} damaged `,
      );
    };
    for (const blob of inventory.blobs()) {
      const why = await findDamage(verifier, blobPath(config.store.path, blob.digest), blob, show);
      blobs += 1;
      if (why !== undefined) suspects.push(blob);
    }
    // What a running mirror evicts, or stores anew, has its file and its row changed one after the other.
    if (suspects.length > 0) await sleep(evictionMs);
    for (const blob of suspects) {
      if (!inventory.has(blob.digest)) continue;
      const why = await findDamage(verifier, blobPath(config.store.path, blob.digest), blob, () => undefined);
      if (why !== undefined && inventory.has(blob.digest)) damaged.push({ ...blob, why });
    }
  }).finally(() => verifier.close());
  if (isWatched) process.stderr.write('\r\x1b[K');
  return { damaged, blobs, bytes };
}

function withInventory<T>({ store }: Config, work: (inventory: Inventory) => T | Promise<T>): Promise<T> {
  return withReader(store.path, () => new Inventory(store.path), work);
}

function withCatalog<T>({ store }: Config, work: (catalog: Catalog) => Promise<T>): Promise<T> {
  return withReader(
    store.path,
    () => new Catalog(catalogPath(store.path), { reader: openToRead(store.path) }),
    work,
  );
}

/** What lists or shows reads the catalog beside whoever works on it, and changes nothing. */
async function withReader<R extends { close(): void }, T>(
  path: string,
  open: () => R,
  work: (reader: R) => T | Promise<T>,
): Promise<T> {
  let reader: R;
  try {
    reader = open();
  } catch (error) {
    if (isCorrupt(error)) throw explain(error, catalogPath(path));
    const cause = error as Error;
    throw new Error(`${path}: no store that can be read (${cause.message})`, { cause });
  }
  try {
    return await work(reader);
  } catch (error) {
    throw isCorrupt(error) ? explain(error, catalogPath(path)) : error;
  } finally {
    reader.close();
  }
}

/** `needsRoom`: what only takes away must work too where pins do not fit under the cap any more. */
async function withOperations<T>(
  config: Config,
  work: (operations: StoreOperations) => Promise<T>,
  needsRoom = false,
): Promise<T> {
  const { maxIdle, ...rest } = config.store;
  mustExist(rest.path);
  const maxBytes = needsRoom ? rest.maxBytes : Infinity;
  // Only what was asked for is changed: nothing is tidied up beside it.
  const options = { ...rest, maxBytes, maxIdleMs: maxIdle, scrubEveryMs: 0, upkeep: false };
  const log = pino({ level: 'warn' }, pino.destination(2));
  let store: BlobStore;
  try {
    store = await BlobStore.open(options, {
      clock: systemClock,
      log,
      onEvicted: () => undefined,
      onPruned: () => undefined,
      onDamaged: () => undefined,
    });
  } catch (error) {
    if (!(error instanceof LockedError)) throw error;
    return work(runningMirror(config));
  }
  try {
    return await work(storeOperations(store, () => config.upstreams.map(({ registry }) => registry)));
  } finally {
    await store.close();
  }
}

/** The operations of the mirror that has the data directory. */
function runningMirror({ adminListen, adminToken }: Config): StoreOperations {
  if (!adminListen)
    throw new Error('a mirror is running on this store, and its adminListen is off: stop it first');
  const anywhere: Record<string, string> = { '0.0.0.0': '127.0.0.1', '::': '[::1]' };
  const { host, port } = adminListen;
  const name = anywhere[host] ?? (host.includes(':') ? `[${host}]` : host);
  const readToken = adminToken === undefined ? undefined : secretReader(adminToken);
  const call = async <T>(operation: string, args: object): Promise<T> => {
    const token = await readToken?.();
    const { statusCode, body } = await request(`http://${name}:${port}/api/${operation}`, {
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        ...(token !== undefined && { authorization: `Bearer ${token}` }),
      },
      body: JSON.stringify(args),
      // It takes as long as it takes.
      headersTimeout: 0,
      bodyTimeout: 0,
    }).catch((cause: unknown) => {
      throw new Error(`the running mirror does not answer at ${name}:${port}, its adminListen`, { cause });
    });
    const text = await body.text();
    let answer: (T & { error?: string }) | undefined;
    try {
      answer = JSON.parse(text) as T & { error?: string };
    } catch (cause) {
      if (statusCode === 200)
        throw new Error(`${name}:${port}: it answered with something else than JSON; is it a mirror?`, {
          cause,
        });
    }
    if (statusCode === 200 && answer) return answer;
    throw new OperationError(`the running mirror: ${answer?.error ?? `HTTP status ${statusCode}`}`);
  };
  return {
    pins: () => call('pins', {}),
    pin: (pattern) => call('pin', { pattern }),
    unpin: (pattern) => call('unpin', { pattern }),
    purge: (pattern, dryRun) => call('purge', { pattern, dryRun }),
    quarantine: (digests) => call('quarantine', { digests }),
    import: (directory, registry) => call('import', { directory, registry }),
  };
}

/** A mistyped path must not become a new store. */
function mustExist(path: string): void {
  if (!existsSync(blobsPath(path))) throw new Error(`${path}: there is no store; check store.path`);
}

function showTime(ms: number): string {
  return ms === 0 ? 'never' : new Date(ms).toISOString().slice(0, 16).replace('T', ' ');
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): void {
  const widths = head.map((title, i) => Math.max(title.length, ...rows.map((row) => row[i]?.length ?? 0)));
  for (const row of [head, ...rows]) {
    write(
      row
        .map((cell, i) => cell.padEnd(widths[i] ?? 0))
        .join('  ')
        .trimEnd(),
    );
  }
}

function print(value: unknown): void {
  write(JSON.stringify(value));
}

function write(line: string): void {
  process.stdout.write(`${line}\n`);
}

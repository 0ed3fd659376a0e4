import { dirname, join, normalize, relative } from 'node:path';

/**
 * The rooms of src/, from the ground up: what lies in one imports from its own room and from those named before it. A room is a
 * folder or a single file; a file belongs to the longest name that fits (docs/design.md, "Rooms").
 */
const rooms = [
  'version.ts',
  'util',
  'oci',
  'telemetry',
  'store/disk',
  'store/catalog',
  'store/disk-workers.ts',
  'store/upkeep/catalog-log.ts',
  'store/reading',
  'store/room',
  'store/context.ts',
  'store/ingest',
  'store/upkeep',
  'store',
  'store/operations',
  'upstream/http',
  'upstream/accounts',
  'upstream/auth',
  'upstream',
  'mirror/answer.ts',
  'mirror/registry-pattern.ts',
  'mirror/fill/connections.ts',
  'mirror/upstreams.ts',
  'mirror/tags/freshness.ts',
  'mirror/tags/negatives.ts',
  'mirror/access',
  'mirror/in-time.ts',
  'mirror/fill',
  'mirror/manifests.ts',
  'mirror/tags',
  'mirror',
  'server',
  'config',
  'service',
  'cli',
];

/** Floors that do not know each other. */
const apart = [
  ['store', 'upstream'],
  ['server', 'store'],
  ['server', 'upstream'],
  ['config', 'store'],
];

/** What other floors may import of these; of the rest everything. */
const faces = {
  store: [
    'store/blob-store.ts',
    'store/context.ts',
    'store/catalog/catalog.ts',
    'store/catalog/tables/links.ts',
    'store/catalog/tables/lists.ts',
    'store/catalog/tables/tags.ts',
    'store/ingest/growing-file.ts',
    'store/ingest/ingest.ts',
    'store/ingest/intervals.ts',
    'store/ingest/verifier.ts',
    'store/reading/stored-content.ts',
    'store/operations/operations.ts',
  ],
  upstream: [
    'upstream/registry-client.ts',
    'upstream/responses.ts',
    'upstream/repo-requests.ts',
    'upstream/presets.ts',
    'upstream/try-twice.ts',
    'upstream/accounts/account.ts',
    'upstream/accounts/account-pool.ts',
    'upstream/accounts/credentials.ts',
    'upstream/accounts/quota.ts',
    'upstream/http/network-policy.ts',
    'upstream/http/proxy.ts',
    'upstream/http/transport.ts',
  ],
};

/** Who looks behind a face: the commands work on the files of a mirror that is stopped. */
const insiders = [['cli', 'store']];

const floorOf = (file) => file.split('/')[0];

function roomOf(file) {
  return rooms
    .filter((room) => file === room || file.startsWith(`${room}/`))
    .reduce((longest, room) => (room.length > longest.length ? room : longest), '');
}

function fault(from, to) {
  const [fromRoom, toRoom] = [roomOf(from), roomOf(to)];
  const [fromFloor, toFloor] = [floorOf(from), floorOf(to)];
  if (fromRoom === '' || toRoom === '')
    return `${fromRoom === '' ? from : to} lies in no room of .eslint.rooms.js`;
  if (rooms.indexOf(toRoom) > rooms.indexOf(fromRoom)) return `${toRoom} lies above ${fromRoom}`;
  if (apart.some((pair) => pair.includes(fromFloor) && pair.includes(toFloor) && fromFloor !== toFloor))
    return `${fromFloor} and ${toFloor} do not know each other`;
  const isInside = fromFloor === toFloor || insiders.some(([a, b]) => a === fromFloor && b === toFloor);
  if (!isInside && faces[toFloor]?.includes(to) === false) return `${to} is inside of ${toFloor}`;
  return undefined;
}

/** An ESLint plugin with one rule: imports of src/ go by the table of rooms. */
export default {
  rules: {
    rooms: {
      meta: { type: 'problem', schema: [] },
      create(context) {
        const root = join(context.cwd, 'src');
        const from = relative(root, context.filename);
        const check = ({ source }) => {
          if (typeof source?.value !== 'string' || !source.value.startsWith('.')) return;
          const to = relative(root, normalize(join(dirname(context.filename), source.value)));
          const message = to.startsWith('..') ? undefined : fault(from, to);
          if (message) context.report({ node: source, message });
        };
        return {
          ImportDeclaration: check,
          ImportExpression: check,
          ExportNamedDeclaration: check,
          ExportAllDeclaration: check,
        };
      },
    },
  },
};

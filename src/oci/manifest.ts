import { MirrorError } from '../util/errors.ts';
import { blobMediaType } from './content.ts';
import { isDigest, type Digest } from './digest.ts';
import { parseJson } from './json.ts';

/** A descriptor in a manifest. Foreign layers are fetched by the client from their own URLs. */
export interface Child {
  readonly digest: Digest;
  readonly size: number;
  readonly kind: 'manifest' | 'config' | 'layer';
  readonly foreign: boolean;
}

export const ociIndex = 'application/vnd.oci.image.index.v1+json';

const ociManifest = 'application/vnd.oci.image.manifest.v1+json';

const indexTypes = [ociIndex, 'application/vnd.docker.distribution.manifest.list.v2+json'];
const manifestTypes = [ociManifest, 'application/vnd.docker.distribution.manifest.v2+json'];

/** Accept header of all manifest requests: what a tag resolves to must not depend on the client's Accept. */
export const acceptManifests = [...manifestTypes, ...indexTypes, '*/*'].join(', ');

/** Limit on descriptors; each becomes a row of the catalog. */
const maxParts = 10_000;

interface Descriptor {
  readonly digest: string;
  readonly size: number;
  readonly mediaType: string | undefined;
  readonly isElsewhere: boolean;
}

interface Body {
  readonly manifests: readonly Descriptor[] | undefined;
  readonly config: Descriptor | undefined;
  readonly layers: readonly Descriptor[] | undefined;
}

type Json = Readonly<Record<string, unknown>>;

/**
 * The descriptors of a manifest, or its first problem (only the first: a hostile document may have millions).
 */
function readBody(json: Json): Body | string {
  const { schemaVersion } = json;
  if (schemaVersion !== undefined && schemaVersion !== 2) return 'schemaVersion is not 2';
  const body: { manifests?: Descriptor[]; config?: Descriptor; layers?: Descriptor[] } = {};
  for (const key of ['manifests', 'layers'] as const) {
    const list = json[key];
    if (list === undefined) continue;
    if (!Array.isArray(list)) return `${key} is not a list`;
    if (list.length > maxParts) return `more than ${maxParts} ${key}`;
    const parts: Descriptor[] = [];
    for (const [i, entry] of list.entries()) {
      const part = readDescriptor(entry);
      if (!part) return `${key}[${i}] has no valid digest or size`;
      parts.push(part);
    }
    body[key] = parts;
  }
  if (json['config'] !== undefined) {
    const config = readDescriptor(json['config']);
    if (!config) return 'config has no valid digest or size';
    body.config = config;
  }
  const { manifests, config, layers } = body;
  return { manifests, config, layers };
}

function readDescriptor(entry: unknown): Descriptor | undefined {
  if (typeof entry !== 'object' || entry === null) return undefined;
  const { digest, size, mediaType, urls } = entry as Json;
  if (typeof digest !== 'string' || !Number.isSafeInteger(size) || (size as number) < 0) return undefined;
  if (mediaType !== undefined && typeof mediaType !== 'string') return undefined;
  if (urls !== undefined && !Array.isArray(urls)) return undefined;
  return { digest, size: size as number, mediaType, isElsewhere: (urls?.length ?? 0) > 0 };
}

/** `type/subtype` of a Content-Type, in lower case, without parameters; undefined if malformed. */
export function bareMediaType(header: string | undefined): string | undefined {
  const type = header?.split(';', 1)[0]?.trim().toLowerCase();
  return type !== undefined && type.length <= 255 && /^[\w.+-]+\/[\w.+-]+$/.test(type) ? type : undefined;
}

/** Facts from a manifest's bytes alone. */
export interface ManifestContent {
  /** The `mediaType` field; `unnamedType` without one. */
  readonly mediaType: string;
  readonly children: readonly Child[];
}

/** Stands for a missing `mediaType` field: the Content-Type may then differ between repos. */
export const unnamedType = '';

/** Default type of a manifest without `mediaType` and without a known Content-Type. */
export function defaultManifestType(children: readonly Child[]): string {
  return children.some(({ kind }) => kind === 'manifest') ? ociIndex : ociManifest;
}

/** Whether a manifest without `mediaType` may be served as `type`, judged by its descriptors. */
export function isPlausibleType(type: string, children: readonly Child[]): boolean {
  const has = (kind: Child['kind']): boolean => children.some((child) => child.kind === kind);
  if (indexTypes.includes(type)) return !has('config') && !has('layer');
  if (manifestTypes.includes(type)) return has('config') && !has('manifest');
  return type !== blobMediaType && type !== 'text/html';
}

/**
 * Parses and validates a manifest. Throws `upstream-invalid` if the body is no JSON object, its `mediaType` contradicts a
 * known Content-Type, or it could be read as two types (CVE-2021-41190).
 */
export function parseManifest(bytes: Uint8Array, contentType: string, what: string): ManifestContent {
  return read(bytes, contentType, what).content;
}

interface Reading {
  readonly content: ManifestContent;
  /** Undefined: not in the form of a manifest. */
  readonly body: Body | undefined;
}

function read(bytes: Uint8Array, contentType: string, what: string): Reading {
  const refuse = (why: string, cause?: unknown): never => {
    throw new MirrorError('upstream-invalid', `${what}: ${why}`, { cause });
  };
  if (contentType === 'text/html') refuse('the upstream sent a web page');
  refuseSchema1(contentType, what);
  let json: unknown;
  try {
    json = parseJson(bytes);
  } catch (cause) {
    refuse('the manifest is not JSON', cause);
  }
  if (typeof json !== 'object' || json === null || Array.isArray(json) || Object.keys(json).length === 0)
    refuse('the manifest is not a JSON object');
  const named = namedType(json as { mediaType?: unknown });
  if (isKnown(contentType) && named !== undefined && named !== contentType) {
    const [inside, outside] = [named, contentType].map((type) => JSON.stringify(type));
    refuse(`the manifest's mediaType is ${inside ?? ''}, its Content-Type ${outside ?? ''}`);
  }
  refuseSchema1(named ?? '', what);
  const type = named ?? contentType;
  const body = readBody(json as Json);
  if (typeof body === 'string') {
    if (isKnown(type)) refuse(`the manifest is malformed: ${body}`);
    return { content: { mediaType: named ?? unnamedType, children: [] }, body: undefined };
  }
  const { manifests, config, layers } = body;
  const isImage = config !== undefined || layers !== undefined;
  if (isKnown(type)) {
    if (manifests && isImage) refuse('the manifest has both manifests and layers');
    if (indexTypes.includes(type) && !manifests) refuse('the index has no manifests');
    if (manifestTypes.includes(type) && !(config && layers))
      refuse('the manifest has no config or no layers');
  }
  return { content: { mediaType: named ?? unnamedType, children: childrenOf(body) }, body };
}

function isKnown(type: string): boolean {
  return indexTypes.includes(type) || manifestTypes.includes(type);
}

/** The `mediaType` field; undefined if malformed or the generic blob type. */
function namedType({ mediaType }: { mediaType?: unknown }): string | undefined {
  const type = typeof mediaType === 'string' ? bareMediaType(mediaType) : undefined;
  return type === blobMediaType ? undefined : type;
}

/** Descriptors without duplicates. */
function childrenOf({ manifests = [], config, layers = [] }: Body): Child[] {
  const children = new Map<string, Child>();
  const add = (kind: Child['kind'], parts: readonly Descriptor[]): void => {
    for (const { digest, size, mediaType: type, isElsewhere } of parts) {
      if (!isDigest(digest) || children.has(kind + digest)) continue;
      const foreign = isElsewhere || /\.(?:foreign|nondistributable)\./.test(type ?? '');
      children.set(kind + digest, { digest, size, kind, foreign });
    }
  };
  add('manifest', manifests);
  add('config', config ? [config] : []);
  add('layer', layers);
  return [...children.values()];
}

/** Throws `upstream-invalid` for schema 1: its digest does not cover its bytes, and current clients cannot read it. */
export function refuseSchema1(mediaType: string, what: string): void {
  if (!/^application\/vnd\.docker\.distribution\.manifest\.v1\+/.test(mediaType)) return;
  const why = 'schema 1 manifests are not supported: push the image again with a current client';
  throw new MirrorError('upstream-invalid', `${what}: ${why}`);
}

/** Reads bytes of unknown kind (import, rebuild); undefined unless they are a manifest. */
export function recognise(bytes: Uint8Array): ManifestContent | undefined {
  // Layers are compressed: the first byte rules out nearly all of them.
  if (bytes[0] !== 0x7b) return undefined;
  try {
    const { content, body } = read(bytes, unnamedType, 'a manifest');
    const isTyped = isKnown(content.mediaType);
    return isTyped || (content.mediaType === unnamedType && isImageOrIndex(body)) ? content : undefined;
  } catch {
    return undefined;
  }
}

/** Any JSON may be a layer or config, so both descriptors must be present. */
function isImageOrIndex(body: Body | undefined): boolean {
  if (!body) return false;
  const { manifests, config, layers } = body;
  return manifests ? !config && !layers : Boolean(config && layers);
}

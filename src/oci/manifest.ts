import { MirrorError } from '../util/errors.ts';
import { blobMediaType } from './content.ts';
import { isDigest, type Digest } from './digest.ts';
import { parseJson } from './json.ts';

/** A part that a manifest names. Foreign parts are fetched from elsewhere, by the client alone. */
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

/** Always asked for in full: a tag must not change its digest with what a client happens to accept. */
export const acceptManifests = [...manifestTypes, ...indexTypes, '*/*'].join(', ');

/** More than any image has; each is a row of the catalog. */
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
 * The parts that a manifest names, or what is wrong with it, of which the first thing is enough: a document of a million wrong
 * entries must not make a report of a million lines.
 */
function readBody(json: Json): Body | string {
  const { schemaVersion } = json;
  if (schemaVersion !== undefined && schemaVersion !== 2) return 'its schemaVersion is not 2';
  const body: { manifests?: Descriptor[]; config?: Descriptor; layers?: Descriptor[] } = {};
  for (const key of ['manifests', 'layers'] as const) {
    const list = json[key];
    if (list === undefined) continue;
    if (!Array.isArray(list)) return `its ${key} are no list`;
    if (list.length > maxParts) return `it has more than ${maxParts} ${key}`;
    const parts: Descriptor[] = [];
    for (const [i, entry] of list.entries()) {
      const part = readDescriptor(entry);
      if (!part) return `its ${key}[${i}] has no digest or no size`;
      parts.push(part);
    }
    body[key] = parts;
  }
  if (json['config'] !== undefined) {
    const config = readDescriptor(json['config']);
    if (!config) return 'its config has no digest or no size';
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

/** `type/subtype` without parameters, in the characters that a header may carry; undefined for anything else. */
export function bareMediaType(header: string | undefined): string | undefined {
  const type = header?.split(';', 1)[0]?.trim().toLowerCase();
  return type !== undefined && type.length <= 255 && /^[\w.+-]+\/[\w.+-]+$/.test(type) ? type : undefined;
}

/** What a manifest's bytes say of themselves, whoever gave them. */
export interface ManifestContent {
  /** As `mediaType` in the bytes names it; `unnamedType` when they name none. */
  readonly mediaType: string;
  readonly children: readonly Child[];
}

/** In place of the media type of a manifest that names none: each repo may give it as another type. */
export const unnamedType = '';

/** The type of a manifest that names none, where no repo's upstream has said one. */
export function usualType(children: readonly Child[]): string {
  return children.some(({ kind }) => kind === 'manifest') ? ociIndex : ociManifest;
}

/** Whether a manifest that names no type may be given as `type`, by its parts. */
export function mayBe(type: string, children: readonly Child[]): boolean {
  const has = (kind: Child['kind']): boolean => children.some((child) => child.kind === kind);
  if (indexTypes.includes(type)) return !has('config') && !has('layer');
  if (manifestTypes.includes(type)) return has('config') && !has('manifest');
  return type !== blobMediaType && type !== 'text/html';
}

/**
 * Reads a manifest's exact bytes, which came as `contentType`. Throws `upstream-invalid` when the body is no JSON object, or
 * names another type than a known one that it came as, or could be read as two types (CVE-2021-41190): none of these may
 * enter the store.
 */
export function parseManifest(bytes: Uint8Array, contentType: string, what: string): ManifestContent {
  return read(bytes, contentType, what).content;
}

interface Reading {
  readonly content: ManifestContent;
  /** Undefined: its parts have not the form of a manifest's. */
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
    refuse('the manifest is no JSON object');
  const named = namedType(json as { mediaType?: unknown });
  if (isKnown(contentType) && named !== undefined && named !== contentType) {
    const [inside, outside] = [named, contentType].map((type) => JSON.stringify(type));
    refuse(`the manifest says ${inside ?? ''}, its Content-Type says ${outside ?? ''}`);
  }
  refuseSchema1(named ?? '', what);
  const type = named ?? contentType;
  const body = readBody(json as Json);
  if (typeof body === 'string') {
    if (isKnown(type)) refuse(`the manifest has not the form of one: ${body}`);
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

/** What would make a blob of it, or no header, names nothing. */
function namedType({ mediaType }: { mediaType?: unknown }): string | undefined {
  const type = typeof mediaType === 'string' ? bareMediaType(mediaType) : undefined;
  return type === blobMediaType ? undefined : type;
}

/** Each part once, however often it is named. */
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

/** Throws `upstream-invalid`: its digest is not that of its bytes, and no client of today reads it. */
export function refuseSchema1(mediaType: string, what: string): void {
  if (!/^application\/vnd\.docker\.distribution\.manifest\.v1\+/.test(mediaType)) return;
  const why = 'schema 1 manifests are not supported: push the image again with a current client';
  throw new MirrorError('upstream-invalid', `${what}: ${why}`);
}

/** Bytes that came from no upstream: a manifest, if they read as one. */
export function recognise(bytes: Uint8Array): ManifestContent | undefined {
  // Layers are compressed: nearly all of them are told apart by their first byte.
  if (bytes[0] !== 0x7b) return undefined;
  try {
    const { content, body } = read(bytes, unnamedType, 'a manifest');
    const isTyped = isKnown(content.mediaType);
    return isTyped || (content.mediaType === unnamedType && isImageOrIndex(body)) ? content : undefined;
  } catch {
    return undefined;
  }
}

/** JSON of any kind may be a layer or a config. */
function isImageOrIndex(body: Body | undefined): boolean {
  if (!body) return false;
  const { manifests, config, layers } = body;
  return manifests ? !config && !layers : Boolean(config && layers);
}

import { Connection, type ConnectionOptions } from './connection.ts';
import { explain } from './damage.ts';
import { BlobTable } from './tables/blobs.ts';
import { ChildTable } from './tables/children.ts';
import { LedgerTable } from './tables/ledger.ts';
import { LinkTable } from './tables/links.ts';
import { ListTable } from './tables/lists.ts';
import { NoteTable } from './tables/notes.ts';
import { PartialTable } from './tables/partials.ts';
import { PinTable } from './tables/pins.ts';
import { QuotaTable } from './tables/quotas.ts';
import { Roots } from './tables/roots.ts';
import { TagTable, type OnTagMoved } from './tables/tags.ts';
import { Uses } from './tables/uses.ts';

export interface CatalogOptions extends ConnectionOptions {
  readonly onTagMoved?: OnTagMoved;
  /** Current limit for tag and referrers lists, in bytes; default: none. */
  readonly maxListBytes?: () => number;
}

/**
 * The store's index in SQLite. Synchronous, so that lookup and lease happen in one tick. Uses are written in batches,
 * everything else at once (WAL, without waiting for the disk).
 */
export class Catalog {
  readonly connection: Connection;
  readonly blobs: BlobTable;
  readonly children: ChildTable;
  readonly uses: Uses;
  readonly links: LinkTable;
  readonly tags: TagTable;
  readonly roots: Roots;
  readonly lists: ListTable;
  readonly partials: PartialTable;
  readonly pins: PinTable;
  readonly quotas: QuotaTable;
  readonly notes: NoteTable;
  readonly ledger: LedgerTable;

  /** Throws when the file is damaged, locked by another program, or of a newer schema version. */
  constructor(file: string, options: CatalogOptions = {}) {
    const { onTagMoved = (): void => undefined, maxListBytes = (): number => Infinity } = options;
    const connection = new Connection(file, options);
    this.connection = connection;
    try {
      this.children = new ChildTable(connection);
      this.uses = new Uses(connection);
      this.blobs = new BlobTable(connection, this.children, this.uses);
      this.links = new LinkTable(connection);
      this.tags = new TagTable(connection, onTagMoved);
      this.roots = new Roots(connection);
      this.lists = new ListTable(connection, maxListBytes);
      this.partials = new PartialTable(connection);
      this.pins = new PinTable(connection);
      this.quotas = new QuotaTable(connection);
      this.notes = new NoteTable(connection);
      this.ledger = new LedgerTable(connection);
    } catch (error) {
      connection.close();
      throw explain(error, file);
    }
  }

  close(): void {
    this.connection.close();
  }
}

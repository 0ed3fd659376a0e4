import express, {
  type Express,
  type NextFunction,
  type Request,
  type RequestHandler,
  type Response,
} from 'express';
import { createHash, timingSafeEqual } from 'node:crypto';
import { z } from 'zod';
import type { Logger } from '../telemetry/log.ts';
import type { Metrics } from '../telemetry/metrics.ts';
import { createApp } from './app.ts';

/** What may be asked of the running mirror: a name, and what answers it. A thrown `OperationError` is 409. */
export type AdminOperations = Readonly<Record<string, (args: unknown) => Promise<unknown>>>;

export interface Readiness {
  /** What does not work, in words for everybody. */
  readonly reasons: readonly string[];
  /** Something can be served: what is held, or what is passed on. */
  readonly canServe: boolean;
}

export interface AdminContext {
  readonly metrics: Metrics;
  readonly log: Logger;
  readonly isDraining: () => boolean;
  readonly readiness: () => Readiness;
  readonly operations: AdminOperations;
  /** Whether whoever reaches the address may use the operations; else they need the token. */
  readonly isLoopback: boolean;
  /** Undefined: none is configured. Read when it is needed. */
  readonly token: () => Promise<string | undefined>;
}

/** What operators and Prometheus ask: on an address of its own, never beside the registry API. */
export function createAdminApp(context: AdminContext): Express {
  const { metrics, log, isDraining, readiness, operations } = context;
  const app = createApp();
  app.get('/healthz', (_req, res) => {
    res.type('text/plain').send('ok\n');
  });
  app.get('/readyz', (_req, res) => {
    const { reasons, canServe } = readiness();
    // What is held is served though nothing else can be had, and what cannot be stored is passed through.
    const state = reasons.length === 0 ? 'ok' : `${canServe ? 'degraded' : 'down'}: ${reasons.join('; ')}`;
    const isReady = canServe && !isDraining();
    res
      .status(isReady ? 200 : 503)
      .type('text/plain')
      .send(`${isDraining() ? 'draining' : state}\n`);
  });
  app.get('/metrics', async (_req, res) => {
    const text = await metrics.render();
    res.setHeader('Content-Type', metrics.contentType);
    res.end(text);
  });
  // A browser sends JSON to another origin only after asking, and is never told that it may.
  app.post('/api/:operation', authorise(context), express.json({ limit: bodyLimit }), async (req, res) => {
    const name = String(req.params['operation']);
    const operation = Object.hasOwn(operations, name) ? operations[name] : undefined;
    const args: unknown = req.body;
    if (!operation) res.status(404).json({ error: 'no such operation' });
    else if (typeof args !== 'object' || args === null)
      res.status(400).json({ error: 'a JSON object is expected, as application/json' });
    else {
      try {
        res.json(await Promise.try(operation, args as Record<string, unknown>));
      } catch (error) {
        if (error instanceof z.ZodError) {
          const [issue] = error.issues;
          res.status(400).json({
            error: `${name}: ${issue?.path.join('.') ?? ''} ${issue?.message ?? ''}`.replace(/ +/g, ' '),
          });
          return;
        }
        const { name: kind, message } = error as Error;
        const isTold = kind === 'OperationError';
        if (!isTold) log.error({ err: error, operation: name }, 'an operation of the admin API failed');
        res.status(isTold ? 409 : 500).json({ error: isTold ? message : 'internal error: see the log' });
      }
    }
  });
  app.use((error: BodyError, _req: Request, res: Response, _next: NextFunction) => {
    const { status = 500, type = '' } = error;
    if (status >= 500) log.error({ err: error }, 'a request to the admin API failed');
    if (res.headersSent) res.destroy();
    else res.status(status).json({ error: bodyProblems[type] ?? 'the request cannot be read' });
  });
  return app;
}

/** As Express's parsers throw it. */
type BodyError = Error & { status?: number; type?: string };

const bodyLimit = '8mb';
/** Parsers' own messages quote what they have read. */
const bodyProblems: Readonly<Record<string, string>> = {
  'entity.parse.failed': 'the body is not JSON',
  'entity.too.large': `the body is larger than ${bodyLimit}`,
  'encoding.unsupported': 'the Content-Encoding of the body is not supported',
  'charset.unsupported': 'the charset of the body is not supported',
};

function authorise({ isLoopback, token }: AdminContext): RequestHandler {
  return async (req, res, next) => {
    let wanted: string | undefined;
    try {
      wanted = await token();
    } catch {
      res.status(503).json({ error: 'the adminToken cannot be read' });
      return;
    }
    const given = /^Bearer (.+)$/.exec(req.headers.authorization ?? '')?.[1];
    // A page in a browser of this machine may have a name of its own that leads here.
    const isOurs = isLoopback && /^(?:localhost|127\.[\d.]+|\[::1\])(?::\d+)?$/.test(req.headers.host ?? '');
    if (wanted === undefined ? isOurs : given !== undefined && isSame(given, wanted)) next();
    else if (wanted === undefined)
      res.status(403).json({ error: 'off loopback the operations need a token: configure adminToken' });
    else res.status(401).json({ error: 'the adminToken is expected as Authorization: Bearer' });
  };
}

/** In a time that says nothing about where they differ. */
function isSame(a: string, b: string): boolean {
  const hash = (text: string): Buffer => createHash('sha256').update(text).digest();
  return timingSafeEqual(hash(a), hash(b));
}

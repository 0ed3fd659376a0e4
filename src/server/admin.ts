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

/** Operations of the admin API by name. A thrown `OperationError` becomes 409. */
export type AdminOperations = Readonly<Record<string, (args: unknown) => Promise<unknown>>>;

export interface Readiness {
  /** What does not work, in text that names no account. */
  readonly reasons: readonly string[];
  /** Whether anything can be served, from the store or from an upstream. */
  readonly canServe: boolean;
}

export interface AdminContext {
  readonly metrics: Metrics;
  readonly log: Logger;
  readonly isDraining: () => boolean;
  readonly readiness: () => Readiness;
  readonly operations: AdminOperations;
  /** Whether adminListen is a loopback address: then operations need no token unless one is configured. */
  readonly isLoopback: boolean;
  /** Reads the configured adminToken; undefined if none is configured. */
  readonly token: () => Promise<string | undefined>;
}

/** Health, metrics and operations. Served on adminListen, never on the address of the registry API. */
export function createAdminApp(context: AdminContext): Express {
  const { metrics, log, isDraining, readiness, operations } = context;
  const app = createApp();
  app.get('/healthz', (_req, res) => {
    res.type('text/plain').send('ok\n');
  });
  app.get('/readyz', (_req, res) => {
    const { reasons, canServe } = readiness();
    // Degraded is still 200: stored content is served during an outage, and pulls bypass a broken store.
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
  // No CSRF: a browser sends JSON across origins only after a CORS preflight, which this API never grants.
  app.post('/api/:operation', authorise(context), express.json({ limit: bodyLimit }), async (req, res) => {
    const name = String(req.params['operation']);
    const operation = Object.hasOwn(operations, name) ? operations[name] : undefined;
    const args: unknown = req.body;
    if (!operation) res.status(404).json({ error: 'no such operation' });
    else if (typeof args !== 'object' || args === null)
      res.status(400).json({ error: 'expected a JSON object with Content-Type: application/json' });
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
        const isForOperator = kind === 'OperationError';
        if (!isForOperator) log.error({ err: error, operation: name }, 'an admin API operation failed');
        res
          .status(isForOperator ? 409 : 500)
          .json({ error: isForOperator ? message : 'internal error: see the log' });
      }
    }
  });
  app.use((error: BodyError, _req: Request, res: Response, _next: NextFunction) => {
    const { status = 500, type = '' } = error;
    if (status >= 500) log.error({ err: error }, 'an admin API request failed');
    if (res.headersSent) res.destroy();
    else res.status(status).json({ error: bodyProblems[type] ?? 'the request cannot be read' });
  });
  return app;
}

/** Thrown by Express's body parsers. */
type BodyError = Error & { status?: number; type?: string };

const bodyLimit = '8mb';
/** Replaces the parsers' own messages, which quote the body. */
const bodyProblems: Readonly<Record<string, string>> = {
  'entity.parse.failed': 'the body is not JSON',
  'entity.too.large': `the body is larger than ${bodyLimit}`,
  'encoding.unsupported': 'the Content-Encoding of the body is not supported',
  'charset.unsupported': 'the charset of the body is not supported',
};

function authorise({ isLoopback, token }: AdminContext): RequestHandler {
  return async (req, res, next) => {
    let expected: string | undefined;
    try {
      expected = await token();
    } catch {
      res.status(503).json({ error: 'adminToken cannot be read' });
      return;
    }
    const given = /^Bearer (.+)$/.exec(req.headers.authorization ?? '')?.[1];
    // Checking Host stops DNS rebinding: a web page whose name resolves to loopback.
    const isLocal = isLoopback && /^(?:localhost|127\.[\d.]+|\[::1\])(?::\d+)?$/.test(req.headers.host ?? '');
    if (expected === undefined ? isLocal : given !== undefined && isSame(given, expected)) next();
    else if (expected === undefined)
      res
        .status(403)
        .json({ error: 'operations from a non-loopback address need a token: configure adminToken' });
    else res.status(401).json({ error: 'expected the adminToken in an Authorization: Bearer header' });
  };
}

/** Constant-time comparison. */
function isSame(a: string, b: string): boolean {
  const hash = (text: string): Buffer => createHash('sha256').update(text).digest();
  return timingSafeEqual(hash(a), hash(b));
}

import type { Express } from 'express';
import type { Metrics } from '../util/metrics.ts';
import { createApp, endOnError } from './app.ts';

export interface AdminContext {
  readonly metrics: Metrics;
  readonly isDraining: () => boolean;
  /** Why the store cannot be written; undefined: it can. */
  readonly trouble: () => string | undefined;
}

/** What operators and Prometheus ask: on an address of its own, never beside the registry API. */
export function createAdminApp({ metrics, isDraining, trouble }: AdminContext): Express {
  const app = createApp();
  app.get('/healthz', (_req, res) => {
    res.type('text/plain').send('ok\n');
  });
  app.get('/readyz', (_req, res) => {
    const why = trouble();
    // What cannot be stored is passed through: it serves.
    const state = isDraining() ? 'draining' : why === undefined ? 'ok' : `degraded: ${why}`;
    res
      .status(isDraining() ? 503 : 200)
      .type('text/plain')
      .send(`${state}\n`);
  });
  app.get('/metrics', async (_req, res) => {
    const text = await metrics.render();
    res.setHeader('Content-Type', metrics.contentType);
    res.end(text);
  });
  app.use(endOnError);
  return app;
}

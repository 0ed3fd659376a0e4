import express, { type Express, type Request, type Response } from 'express';
import type { RequestListener } from 'node:http';
import { createRegistryHandler, type RegistryContext } from './registry-routes.ts';

/** The registry API as an Express application. */
export function createRegistryApp(context: RegistryContext): RequestListener {
  const app = createApp();
  const handler = createRegistryHandler(context);
  app.use(handler);
  // Express skips request targets that it cannot parse: answer these with an OCI error too.
  return (req, res) => app(req as Request, res as Response, () => void handler(req, res));
}

/** Express without its own ETags, query parsing and X-Powered-By. */
export function createApp(): Express {
  const app = express();
  app.disable('x-powered-by');
  app.set('etag', false);
  app.set('query parser', false);
  return app;
}

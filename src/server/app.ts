import express, { type Express, type Request, type Response } from 'express';
import type { RequestListener } from 'node:http';
import { createRegistryHandler, type RegistryContext } from './registry-routes.ts';

/** The registry API as an Express application. */
export function createRegistryApp(context: RegistryContext): RequestListener {
  const app = createApp();
  const handler = createRegistryHandler(context);
  app.use(handler);
  // Targets that Express cannot read pass it by: they get their OCI error too.
  return (req, res) => app(req as Request, res as Response, () => void handler(req, res));
}

/** Express without what would touch an answer: our ETags are digests, our types are bare, our targets are raw. */
export function createApp(): Express {
  const app = express();
  app.disable('x-powered-by');
  app.set('etag', false);
  app.set('query parser', false);
  return app;
}

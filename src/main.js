#!/usr/bin/env node
// Plain JavaScript, and nothing imported before the check: an old Node cannot even read the rest.

const [major = 0] = process.versions.node.split('.').map(Number);
if (major < 24) {
  process.stderr.write(
    `layercache needs Node.js 24 or newer, this is ${process.version}; in a checkout "npm ci" brings one, if its install scripts may run\n`,
  );
  process.exit(1);
}
// Before the pool is first used: dirty-page throttling in four writes must not stop every read and look-up.
process.env['UV_THREADPOOL_SIZE'] ??= '16';

const { run } = await import('./cli/cli.ts');
await run(process.argv);

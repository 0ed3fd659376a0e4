/** What is waited for, but no longer than the signal lets: then it rejects with `late()`. The work itself goes on. */
export async function orLate<T>(work: Promise<T>, signal: AbortSignal, late: () => unknown): Promise<T> {
  const left = Promise.withResolvers<never>();
  const leave = (): void => left.reject(late());
  if (signal.aborted) leave();
  signal.addEventListener('abort', leave, { once: true });
  try {
    return await Promise.race([work, left.promise]);
  } finally {
    signal.removeEventListener('abort', leave);
  }
}

import { compare } from 'bcryptjs';
import { answerCalls } from '../util/worker.ts';

/** bcrypt is slow on purpose: it has a thread of its own. */
answerCalls({
  compare: ({ password, hash }: { password: string; hash: string }) => compare(password, hash),
});

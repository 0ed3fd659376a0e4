import { compareSync } from 'bcryptjs';
import { answerCalls } from '../util/worker.ts';

/** bcrypt is slow on purpose: it has a thread of its own, and there one comparison comes after the other. */
answerCalls({
  compare: ({ password, hash }: { password: string; hash: string }) => compareSync(password, hash),
});

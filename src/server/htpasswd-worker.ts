import { compareSync } from 'bcryptjs';
import { answerCalls } from '../util/worker.ts';

/** bcrypt is slow by design: comparisons run one at a time on a thread of their own. */
answerCalls({
  compare: ({ password, hash }: { password: string; hash: string }) => compareSync(password, hash),
});

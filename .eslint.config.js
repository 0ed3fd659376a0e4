import { defineConfig } from 'eslint/config';
import tseslint from 'typescript-eslint';

/** The floors of src/: a folder imports only from the folders named behind it (docs/design.md, "Rooms"). */
const floors = {
  util: [],
  oci: ['util'],
  store: ['util', 'oci'],
  upstream: ['util', 'oci'],
  mirror: ['util', 'oci', 'store', 'upstream'],
  server: ['util', 'oci', 'mirror'],
};

const floorRules = Object.entries(floors).map(([folder, below]) => ({
  files: [`src/${folder}/**/*.ts`],
  rules: {
    'no-restricted-imports': [
      'error',
      {
        patterns: [
          {
            regex: `^\\.\\./(?!(?:${[...below, '-'].join('|')})/)`,
            message: `src/${folder} may import from ${below.join(', ') || 'nothing above it'} only.`,
          },
        ],
      },
    ],
  },
}));

export default defineConfig(
  { ignores: ['dist/', 'node_modules/', 'data/'] },
  {
    files: ['**/*.ts', 'src/**/*.js'],
    extends: [tseslint.configs.strictTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      eqeqeq: 'error',
      'no-console': 'error',
      '@typescript-eslint/restrict-template-expressions': [
        'error',
        { allowNumber: true, allowBoolean: true },
      ],
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_' }],
      '@typescript-eslint/switch-exhaustiveness-check': 'error',
      '@typescript-eslint/no-confusing-void-expression': ['error', { ignoreArrowShorthand: true }],
      '@typescript-eslint/consistent-type-imports': 'error',
    },
  },
  ...floorRules,
  {
    files: ['test/**/*.ts', 'bench/**/*.ts'],
    rules: {
      // node:test's describe and test return promises that the runner itself awaits.
      '@typescript-eslint/no-floating-promises': [
        'error',
        {
          allowForKnownSafeCalls: [
            { from: 'package', package: 'node:test', name: ['describe', 'test', 'suite', 'it'] },
          ],
        },
      ],
      // A test that finds undefined where it asserted a value fails anyway, and says where.
      '@typescript-eslint/no-non-null-assertion': 'off',
    },
  },
);

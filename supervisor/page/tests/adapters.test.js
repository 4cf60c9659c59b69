import assert from 'node:assert/strict';
import { test } from 'node:test';

import { chosenAdapters } from '../adapters.js';

test('sliders that nobody has moved leave the session as it is', () => {
  assert.equal(chosenAdapters(new Map()), null);
});

test('what is moved back to the middle is switched off', () => {
  const strengths = new Map([['toon', 0.5], ['fade', 0]]);
  assert.deepEqual(chosenAdapters(strengths), [{ name: 'toon', strength: 0.5 }]);
  strengths.set('toon', 0);
  assert.deepEqual(chosenAdapters(strengths), []);
});

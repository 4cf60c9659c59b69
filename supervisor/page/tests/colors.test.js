// Tests of the colours: what browsers without `light-dark()` have, and the contrast of what is filled in and switched.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

const css = readFileSync(new URL('../theme/colors.css', import.meta.url), 'utf8');
const [themes, fallback] = css.split('@supports not');

/** The colours of a theme by their names. @param {'light' | 'dark'} theme */
const coloursOf = (theme) => Object.fromEntries([...themes.matchAll(/(--[\w-]+): light-dark\((#\w+), (#\w+)\)/g)]
  .map(([, name, light, dark]) => [name, theme === 'light' ? light : dark]));

/** Relative luminance, as WCAG defines it. */
function luminance(colour) {
  const digits = colour.slice(1);
  const full = digits.length === 3 ? [...digits].map((digit) => digit + digit).join('') : digits;
  const [r, g, b] = [0, 2, 4].map((at) => parseInt(full.slice(at, at + 2), 16) / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(a, b) {
  const [dark, light] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (light + 0.05) / (dark + 0.05);
}

test('browsers without light-dark() have the colours of the dark theme', () => {
  const told = Object.fromEntries([...fallback.matchAll(/(--[\w-]+): (#\w+);/g)].map(([, name, colour]) => [name, colour]));
  assert.deepEqual(told, coloursOf('dark'));
});

test('fields and switches stand out from every ground, and words can be read on it', () => {
  for (const theme of ['light', 'dark']) {
    const colours = coloursOf(theme);
    for (const ground of ['--ink', '--sunk', '--panel', '--field', '--raise']) {
      assert.ok(contrast(colours['--edge'], colours[ground]) >= 3, `${theme}: --edge on ${ground}`);
      for (const words of ['--text', '--dim', '--hot', '--ice', '--lime', '--gold', '--bad-text']) {
        assert.ok(contrast(colours[words], colours[ground]) >= 4.5, `${theme}: ${words} on ${ground}`);
      }
    }
    assert.ok(contrast(colours['--edge'], '#fff') >= 3, `${theme}: the knob on a switch that is off`);
  }
});

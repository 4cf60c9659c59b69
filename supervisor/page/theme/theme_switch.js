// @ts-check
// The choice between the system's theme, the light and the dark one. It is kept in the browser; `early.js` sets it at the next load.

import { make } from '../dom.js';

const STORED = 'fastvideo.theme';
const SYSTEM = 'system';

/** The colours of the browser's own frame around the page: `--ink` of the themes. @type {{[theme: string]: string}} */
const FRAMES = { light: '#f7f7f3', dark: '#0c0d10' };

/** Returns the chosen theme for what is stored. @param {?string} [stored] */
export const themeIn = (stored) => (stored && Object.hasOwn(FRAMES, stored) ? stored : SYSTEM);

/**
 * Shows the choice, and follows it in this tab and in all others.
 *
 * @param {HTMLElement} root  a fieldset with a radio button for each theme
 * @param {() => Storage} storage  throws where the browser keeps nothing
 */
export function bindThemeSwitch(root, storage) {
  /** @param {string} theme */
  const show = (theme) => {
    for (const radio of root.querySelectorAll('input')) radio.checked = radio.value === theme;
    apply(theme);
  };
  root.addEventListener('change', ({ target }) => {
    const { value } = /** @type {HTMLInputElement} */ (target);
    apply(value);
    try {
      if (value === SYSTEM) storage().removeItem(STORED);
      else storage().setItem(STORED, value);
    } catch {
      // Storage is forbidden: the theme holds until the page is left.
    }
  });
  addEventListener('storage', ({ key, newValue }) => { if (key === STORED) show(themeIn(newValue)); });
  // The browser may restore what was chosen on the page before a reload.
  addEventListener('pageshow', () => show(themeIn(document.documentElement.dataset.theme)));
  show(themeIn(document.documentElement.dataset.theme));
}

/** @param {string} theme */
function apply(theme) {
  const { dataset } = document.documentElement;
  if (theme === SYSTEM) delete dataset.theme;
  else dataset.theme = theme;
  document.head.querySelectorAll('meta[name=theme-color]').forEach((meta) => meta.remove());
  for (const [name, colour] of Object.entries(FRAMES)) {
    if (![SYSTEM, name].includes(theme)) continue;
    const meta = make('meta');
    Object.assign(meta, { name: 'theme-color', content: colour, media: theme === SYSTEM ? `(prefers-color-scheme: ${name})` : '' });
    document.head.append(meta);
  }
}

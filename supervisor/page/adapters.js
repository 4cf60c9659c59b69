// The sliders of the server's adapters (LoRA). What they say goes with the next prompt, and holds from its segment on.

import { make, say, set } from './dom.js';

const STRONGEST = 2;

/**
 * Returns what a prompt asks for: the adapters that act, or null where the user has left all of them alone.
 *
 * @param {Map<string, number>} strengths  of the adapters whose sliders were moved
 * @returns {?import('./protocol.js').Adapter[]}
 */
export function chosenAdapters(strengths) {
  if (!strengths.size) return null;
  return [...strengths].filter(([, strength]) => strength !== 0).map(([name, strength]) => ({ name, strength }));
}

export class AdapterSliders {
  /** @param {HTMLElement} root  a fieldset */
  constructor(root) {
    this.root = root;
    /** @type {Map<string, number>} */
    this.strengths = new Map();
    this.shown = '';
  }

  /** Shows a slider for each adapter that the server offers. @param {import('./protocol.js').Adapter[]} offered */
  render(offered) {
    const key = JSON.stringify(offered);
    if (key === this.shown) return;
    this.shown = key;
    const names = offered.map((adapter) => adapter.name);
    for (const name of this.strengths.keys()) if (!names.includes(name)) this.strengths.delete(name);
    set(this.root, { hidden: !offered.length });
    this.root.querySelectorAll('label').forEach((label) => label.remove());
    this.root.append(...offered.map((adapter) => this.slider(adapter)));
  }

  slider({ name, strength }) {
    const label = make('label', '', name);
    label.title = `Usually ${strength}`;
    const value = make('output');
    const input = make('input');
    Object.assign(input, { type: 'range', min: -STRONGEST, max: STRONGEST, step: 0.05, value: this.strengths.get(name) ?? 0 });
    input.dataset.testid = `adapter-${name}`;
    const show = () => say(value, Number(input.value) === 0 ? 'off' : Number(input.value).toFixed(2));
    input.oninput = () => {
      this.strengths.set(name, Number(input.value));
      show();
    };
    show();
    label.append(value, input);
    return label;
  }

  /** @returns {?import('./protocol.js').Adapter[]} */
  chosen() {
    return chosenAdapters(this.strengths);
  }
}

// DOM helpers of the view. Text is written by `textContent` only, so that no text from outside becomes markup (XSS).

const CLOSED = 'details:not([open])';

/** @returns {any} */
export const $ = (id) => document.getElementById(id);

/** Tells whether the user prefers reduced motion. */
export const prefersStill = () => matchMedia('(prefers-reduced-motion: reduce)').matches;

export function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text != null) node.textContent = text;
  return node;
}

/** Returns one of the page's icons. @param {string} name */
export function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  svg.setAttribute('aria-hidden', 'true');
  use.setAttribute('href', `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Sets the text if it differs, so that live regions are not announced again and selections are kept. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Sets those properties that differ. */
export function set(node, properties) {
  for (const [name, value] of Object.entries(properties)) if (node[name] !== value) node[name] = value;
}

/** Sets those `data-` attributes that differ. */
export function mark(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) if (node.dataset[name] !== String(value)) node.dataset[name] = value;
}

/** Shows pairs of a name and a value, and leaves out those without a value. */
export function facts(node, pairs) {
  const parts = pairs.filter(([, value]) => value !== '' && value != null);
  const key = JSON.stringify(parts);
  if (node.dataset.key === key) return;
  node.dataset.key = key;
  node.replaceChildren(...parts.map(([name, value]) => {
    const part = make('span', '', `${name} `);
    part.append(make('b', '', value));
    return part;
  }));
}

/** Opens the details around a node. In closed ones the browser can neither focus a field nor show what is wrong with it. */
export function openAround(node) {
  for (let closed = node.closest(CLOSED); closed; closed = node.closest(CLOSED)) closed.open = true;
}

/** Offers a file for download. */
export const save = (blob, name) => saveFrom(URL.createObjectURL(blob), name);

/** Offers what is at an address for download. An address of a file in memory is freed a while later. */
export function saveFrom(address, name) {
  const link = make('a');
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

// What the other files build with: elements, and numbers as words.

export const $ = (id) => document.getElementById(id);
export const MIB = 1024 * 1024;
export const still = matchMedia('(prefers-reduced-motion: reduce)');

export const seconds = (ms) => (ms == null ? '' : `${(ms / 1000).toFixed(ms < 9950 ? 2 : 1)} s`);
export const clock = (s) => {
  const whole = Math.floor(s + 0.05); // 3.999 is the end of four seconds
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, '0')}`;
};
export const span = (s) => (s < 1 ? 'less than 1 s' : s < 120 ? `${Math.round(s)} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`);
export const gib = (bytes) => (bytes < 1024 ** 3 ? `${Math.round(bytes / MIB)} MiB` : `${(bytes / 1024 ** 3).toFixed(1)} GiB`);
export const plural = (n, word) => `${n} ${word}${n === 1 ? '' : 's'}`;
export const phrase = (text) => String(text).replaceAll('_', ' ');
export const sentence = (text) => (text ? text[0].toUpperCase() + text.slice(1).replace(/([^.!?])$/, '$1.') : '');
export const ordinal = (n) => `${n}${['th', 'st', 'nd', 'rd'][n % 100 > 10 && n % 100 < 14 ? 0 : n % 10] ?? 'th'}`;
export const pad = (idx) => String(idx + 1).padStart(2, '0');

export function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text != null) node.textContent = text;
  return node;
}

/** Writes only what differs, so that live regions and selections are left in peace. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

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

export function save(blob, name) {
  const link = make('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

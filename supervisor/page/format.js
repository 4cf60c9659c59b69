// @ts-check
// Formats numbers and names as text. This file has no access to the DOM.

const MIB = 1024 * 1024;

/** Formats milliseconds as seconds. The text of an unknown time is empty. @param {?number} [ms] */
export const seconds = (ms) => (ms == null ? '' : `${(ms / 1000).toFixed(ms < 9950 ? 2 : 1)} s`);

/** Formats seconds as minutes and seconds, as a player shows them. @param {number} s */
export const clock = (s) => {
  const whole = Math.floor(s + 0.05); // 3.999 is the end of four seconds
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, '0')}`;
};

/** Formats seconds in the unit that people would use. @param {number} s */
export const span = (s) => (s < 1 ? 'less than 1 s' : s < 120 ? `${Math.round(s)} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`);

/** Formats bytes as MiB or GiB. @param {number} bytes */
export const gib = (bytes) => (bytes < 1024 ** 3 ? `${Math.round(bytes / MIB)} MiB` : `${(bytes / 1024 ** 3).toFixed(1)} GiB`);

/** Formats bytes as MiB, without the unit. @param {number} bytes */
export const mib = (bytes) => (bytes / MIB).toFixed(1);

/** Formats a count with its noun. @param {number} n @param {string} word */
export const plural = (n, word) => `${n} ${word}${n === 1 ? '' : 's'}`;

/** Formats an identifier as words. @param {unknown} text */
export const phrase = (text) => String(text).replaceAll('_', ' ');

/** Gives a message a capital letter and a full stop. @param {unknown} text */
export const sentence = (text) => {
  const words = String(text ?? '');
  return words && words[0].toUpperCase() + words.slice(1) + (/[.!?]$/.test(words) ? '' : '.');
};

/** Formats an ordinal number: 1st, 2nd. @param {number} n */
export const ordinal = (n) => `${n}${['th', 'st', 'nd', 'rd'][n % 100 > 10 && n % 100 < 14 ? 0 : n % 10] ?? 'th'}`;

/** Formats a segment's index as a number that counts from 1. @param {number} idx */
export const pad = (idx) => String(idx + 1).padStart(2, '0');

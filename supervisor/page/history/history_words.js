// @ts-check
// The texts of the history. This file has no access to the DOM.

import { clock, mib, plural, span } from '../format.js';
import { LIMITS, bytesOf, isWhole, mayResume, segmentsOf } from './record.js';

/** @typedef {import('./record.js').HistoryRecord} HistoryRecord */

/** Tells how a session can go on. @param {HistoryRecord} record @param {number} now */
export function continueWords(record, now) {
  if (mayResume(record, now)) {
    return record.resumableUntil === null ? 'Goes on where it was' : `Goes on where it was, for another ${span((record.resumableUntil - now) / 1000)}`;
  }
  if (record.stateBytes) return 'Goes on from its saved state';
  const why = record.isAtCap && record.resumableUntil === 0 ? 'it has all its segments' : 'the server does not keep it any more';
  return `It cannot go on: ${why}, and no state of it was saved.`;
}

/** Tells what the browser lacks of a film; empty where it has all of it. @param {HistoryRecord} record */
export function lackWords(record) {
  if (record.isPictures) return 'JPEG frames are not kept as a film.';
  if (isWhole(record)) return '';
  const lack = `The film is incomplete: this browser has ${segmentsOf(record)} of ${plural(record.prompts.length, 'segment')}.`;
  return record.token && record.hasFilm !== false ? `${lack} It is taken from the server while that has all of it.` : lack;
}

/** Tells whether a session can go on. @param {HistoryRecord} record @param {number} now */
export const canGoOn = (record, now) => mayResume(record, now) || record.stateBytes > 0;

/** Sums the history up. @param {readonly HistoryRecord[]} records */
export function historyWords(records) {
  if (!records.length) return '';
  const bytes = records.reduce((sum, record) => sum + bytesOf(record), 0);
  return `${mib(bytes)} of ${mib(LIMITS.bytes).replace('.0', '')} MiB used. The oldest sessions make room for new ones.`;
}

/** Names a session's facts. @param {HistoryRecord} record @returns {[name: string, value: string][]} */
export const recordFacts = (record) => [
  ['length', clock(record.seconds)], ['shots', String(record.prompts.length)], ['kept', `${mib(bytesOf(record))} MiB`],
];

/** Tells why something is not kept. @param {'full' | 'denied'} reason */
export const failureWords = (reason) => (reason === 'full'
  ? { title: 'The history is full.', text: 'The browser has no room for this session. Delete older ones under History, or free some space.' }
  : { title: 'The history cannot be kept.', text: 'The browser does not store it. The session itself goes on.' });

/** Names what is deleted. @param {number} count */
export const deletedWords = (count) => `${plural(count, 'session')} deleted.`;

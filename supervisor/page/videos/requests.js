// @ts-check
// The requests for video jobs.

import { ofServer } from '../address.js';
import { Refused, ask, askFile } from '../api.js';

/** A file with an image has up to 32 MiB, and a slow connection takes its time for them. */
const UPLOAD_TIMEOUT_MS = 300_000;
const TIMEOUT_MS = 20_000;
/** How much longer than the server waits the page waits for its answer. */
const WAIT_MARGIN_MS = 15_000;

/** The number of jobs of a page. */
const PAGE = '20';

const UNAUTHORIZED = 401;
const NOT_IMPLEMENTED = 501;
/** The statuses of refusals that say nothing about the request. */
const NOT_NOW = [408, 429];

/**
 * A video job; the fields that the page shows.
 *
 * @typedef {object} Video
 * @property {string} id  the later the job was made, the greater
 * @property {'queued' | 'in_progress' | 'completed' | 'failed'} status
 * @property {'waiting' | 'generating' | 'storing' | 'done'} phase
 * @property {number} progress  in percent
 * @property {?number} queue_position  the number of jobs before this one; null unless it is queued
 * @property {string} prompt
 * @property {string} size
 * @property {string} seconds
 * @property {number} fps
 * @property {string} seed
 * @property {?number} bytes
 * @property {?number} expires_at  in seconds since the Unix epoch
 * @property {number} inference_time_s
 * @property {?{code: string, message: string}} error
 *
 * @typedef {{data: Video[], has_more: boolean}} VideoPage  the newest job first
 * @typedef {'video' | 'thumbnail'} Variant
 */

/** @param {string} id @param {string} [path] */
const ofVideo = (id, path = '') => `v1/videos/${encodeURIComponent(id)}${path}`;

/**
 * Reads an answer. A seed has up to 64 bits, of which a number would lose some. A quote within a text is escaped, so that only the
 * field is found.
 *
 * @param {string} text
 */
const read = (text) => JSON.parse(text.replace(/"seed":\s*(\d+)/g, '"seed":"$1"'));

/** @param {number} ms @param {AbortSignal} [signal] @returns {AbortSignal} */
const limited = (ms, signal) => (signal ? AbortSignal.any([signal, AbortSignal.timeout(ms)]) : AbortSignal.timeout(ms));

/**
 * Returns a page of the list of jobs.
 *
 * @param {{after?: string, limit?: string}} [query]
 * @param {AbortSignal} [signal]
 * @returns {Promise<VideoPage>}
 */
export const listVideos = (query = {}, signal) => (
  ask(`v1/videos?${new URLSearchParams({ limit: PAGE, ...query })}`, { cache: 'no-store', signal: limited(TIMEOUT_MS, signal) }, read));

/**
 * Returns a job when its status or progress changes, or after some seconds.
 *
 * @param {string} id
 * @param {number} seconds
 * @param {AbortSignal} signal
 * @returns {Promise<Video>}
 */
export const waitForVideo = (id, seconds, signal) => (
  ask(ofVideo(id, `?wait_seconds=${seconds}`), { cache: 'no-store', signal: limited(seconds * 1000 + WAIT_MARGIN_MS, signal) }, read));

/**
 * Tells whether the server makes video jobs, as it does even if it asks for a key first. Throws when the server says nothing about
 * that.
 *
 * @returns {Promise<boolean>}
 */
export async function offersVideos() {
  try {
    return Array.isArray((await listVideos({ limit: '1' })).data);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    const { status } = error;
    if (NOT_NOW.includes(status) || (status >= 500 && status !== NOT_IMPLEMENTED)) throw error;
    return status === UNAUTHORIZED;
  }
}

/** @param {string} path @param {BodyInit} body @param {{[name: string]: string}} headers @returns {Promise<Video>} */
const post = (path, body, headers) => ask(path, { method: 'POST', body, headers, signal: limited(UPLOAD_TIMEOUT_MS) }, read);

/** @param {string} path @param {object} body @param {string} key @returns {Promise<Video>} */
const postJson = (path, body, key) => post(path, JSON.stringify(body), { 'content-type': 'application/json', 'idempotency-key': key });

/** Has a video made. @param {FormData} form @param {string} key  an idempotency key */
export const createVideo = (form, key) => post('v1/videos', form, { 'idempotency-key': key });

/** Has a video made like another one. @param {string} id @param {{[field: string]: string}} changes @param {string} key */
export const remixVideo = (id, changes, key) => postJson(ofVideo(id, '/remix'), changes, key);

/**
 * Has a video made that goes on where another one ends.
 *
 * @param {string} id
 * @param {{[field: string]: string}} fields
 * @param {string} key
 */
export const extendVideo = (id, fields, key) => postJson('v1/videos/extensions', { video: { id }, ...fields }, key);

/** @param {string} id @returns {Promise<Video>} */
export const cancelVideo = (id) => ask(ofVideo(id, '/cancel'), { method: 'POST', signal: limited(TIMEOUT_MS) }, read);

/** @param {string} id */
export const deleteVideo = (id) => ask(ofVideo(id), { method: 'DELETE', signal: limited(TIMEOUT_MS) });

/** @param {string} id @param {Variant} variant */
const contentOf = (id, variant) => ofVideo(id, `/content?variant=${variant}`);

/** Returns the address of a file of a job. @param {string} id @param {Variant} variant */
export const videoAddress = (id, variant) => ofServer(contentOf(id, variant));

/** Returns a file of a job. @param {string} id @param {Variant} variant */
export const videoFile = (id, variant) => askFile(contentOf(id, variant), {});

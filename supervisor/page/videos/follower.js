// @ts-check
// Keeps the list of jobs in step with the server while it is seen: with long polls of the unfinished jobs, and now and then with the
// list, which tells of places in the queue and of jobs that others have made.

import { CLOCK, backoffMs } from '../connection.js';

/** How long the server waits for a change of a job. */
const WAIT_SECONDS = 25;
/**
 * The most long polls at a time. Over HTTP/1.1 browsers open only six connections to a server, and the page needs some for other
 * requests.
 */
const MAX_POLLS = 3;
/** The pause between two long polls of a job, whose progress may change many times a second. */
const PACE_MS = 250;
/** The time between two looks at the list. */
const REFRESH_MS = 10_000;

const NOT_FOUND = 404;

/**
 * @typedef {import('./requests.js').Video} Video
 * @typedef {import('./requests.js').VideoPage} VideoPage
 *
 * @typedef {object} Server
 * @property {(signal: AbortSignal) => Promise<VideoPage>} firstPage
 * @property {(id: string, seconds: number, signal: AbortSignal) => Promise<Video>} job
 *
 * @typedef {object} Hooks
 * @property {() => void} changed  is called when the list has changed
 * @property {(job: Video) => void} ended  is called when a job that was unfinished has ended
 * @property {(error: any) => void} failed  is called when the server did not answer, before it is asked again
 */

export class Follower {
  /**
   * @param {import('./job_list.js').JobList} list
   * @param {Server} server
   * @param {Hooks} hooks
   * @param {typeof CLOCK} [clock]
   */
  constructor(list, server, hooks, clock = CLOCK) {
    this.list = list;
    this.server = server;
    this.hooks = hooks;
    this.clock = clock;
    /** @type {?AbortController} */
    this.run = null; // while the list is followed
    /** @type {Set<string>} */
    this.busy = new Set(); // the jobs that are asked about, or were a moment ago
    /** @type {Map<string, number>} */
    this.answeredAt = new Map();
    /** @type {Map<string, number>} */
    this.failuresOf = new Map(); // jobs about which the server did not answer, and how often in a row
    /** @type {Set<string>} */
    this.resting = new Set(); // those of them that are left alone for a while
    this.failures = 0; // of the list, in a row
    this.isRefreshing = false;
    /** @type {any} */
    this.timer = null; // of the next look at the list
  }

  /** Begins, with a look at the list. */
  start() {
    if (this.run) return;
    this.run = new AbortController();
    this.failures = 0;
    this.refresh();
  }

  /** Ends, and gives up what is under way. */
  stop() {
    this.run?.abort();
    this.run = null;
    this.clock.cancel(this.timer);
    this.busy.clear();
    this.resting.clear();
    this.failuresOf.clear();
    this.isRefreshing = false;
  }

  /** Looks at the list, and begins the long polls if the server answers. */
  async refresh() {
    const { run } = this;
    if (!run || this.isRefreshing) return;
    this.isRefreshing = true;
    this.clock.cancel(this.timer);
    this.list.expectPage();
    try {
      const page = await this.server.firstPage(run.signal);
      if (run === this.run) this.takePage(page);
    } catch (error) {
      if (run === this.run) this.fail(error);
    }
    if (run !== this.run) return;
    this.isRefreshing = false;
    const pause = this.failures ? backoffMs(this.failures, this.clock.random()) : REFRESH_MS;
    this.timer = this.clock.after(() => this.refresh(), pause);
    this.poll();
  }

  /** @param {VideoPage} page */
  takePage(page) {
    this.failures = 0;
    const ended = this.list.refresh(page);
    this.hooks.changed();
    ended.forEach((job) => this.hooks.ended(job));
  }

  /** @param {any} error */
  fail(error) {
    this.failures += 1;
    this.hooks.failed(error);
  }

  /** Asks about as many unfinished jobs as there is room for, unless the server does not answer. */
  poll() {
    if (!this.run || this.failures) return;
    for (const { id } of this.list.unfinished((id) => this.answeredAt.get(id) ?? 0)) {
      if (this.busy.size >= MAX_POLLS) return;
      if (!this.busy.has(id) && !this.resting.has(id)) this.ask(id, this.run);
    }
  }

  /** @param {string} id @param {AbortController} run */
  async ask(id, run) {
    this.busy.add(id);
    try {
      const job = await this.server.job(id, WAIT_SECONDS, run.signal);
      if (run === this.run) this.takeJob(job);
    } catch (error) {
      if (run === this.run) this.failJob(id, error);
    }
    this.clock.after(() => {
      if (run !== this.run) return;
      this.busy.delete(id);
      this.poll();
    }, PACE_MS);
  }

  /** @param {Video} job */
  takeJob(job) {
    this.answeredAt.set(job.id, this.clock.now());
    this.failuresOf.delete(job.id);
    const before = this.list.get(job.id)?.status;
    const hasEnded = this.list.put(job);
    this.hooks.changed();
    if (hasEnded) this.hooks.ended(job);
    if (before !== job.status) this.refresh(); // others move up
  }

  /** Leaves a job alone for a while. Whether the server answers at all is seen by the list. @param {string} id @param {any} error */
  failJob(id, error) {
    if (error.status === NOT_FOUND) {
      this.list.remove(id);
      this.hooks.changed();
      return;
    }
    const failures = (this.failuresOf.get(id) ?? 0) + 1;
    this.failuresOf.set(id, failures);
    this.resting.add(id);
    this.clock.after(() => {
      this.resting.delete(id);
      this.poll();
    }, backoffMs(failures, this.clock.random()));
    if (!this.failures) this.refresh();
  }
}

// @ts-check
// The jobs that the page knows, and which of them the server is to be asked about. This file knows no server and no DOM.

/**
 * @typedef {import('./requests.js').Video} Video
 * @typedef {import('./requests.js').VideoPage} VideoPage
 */

/** @param {Video} job */
export const isUnfinished = ({ status }) => status === 'queued' || status === 'in_progress';

/** @param {Video} job */
export const isCancelled = ({ status, error }) => status === 'failed' && error?.code === 'cancelled';

export class JobList {
  constructor() {
    /** @type {Video[]} */
    this.jobs = []; // the newest first
    /** Whether the server has jobs that are older than all of these. */
    this.hasMore = false;
    /** @type {Set<string>} */
    this.deleted = new Set(); // an answer that was on its way does not bring them back
    /** @type {Set<string>} */
    this.newcomers = new Set(); // made here since the first page was asked for, which may lack them
  }

  /** @param {string} id */
  get(id) {
    return this.jobs.find((job) => job.id === id);
  }

  /** The id after which the next page begins. */
  get last() {
    return this.jobs.at(-1)?.id;
  }

  /** Is called when the first page is asked for. */
  expectPage() {
    this.newcomers.clear();
  }

  /**
   * Takes the first page in. Jobs that it should have and has not are no longer there. Those of further pages stay if it joins
   * them without a gap.
   *
   * @param {VideoPage} page
   * @returns {Video[]}  the jobs that have ended since they were seen last
   */
  refresh({ data, has_more: hasMore }) {
    const oldest = data.at(-1)?.id ?? '';
    const listed = new Set(data.map(({ id }) => id));
    const joins = hasMore && this.jobs.some(({ id }) => listed.has(id));
    const older = joins ? this.jobs.filter(({ id }) => id < oldest) : [];
    if (!older.length) this.hasMore = hasMore;
    this.jobs = [...this.jobs.filter(({ id }) => listed.has(id) || this.newcomers.has(id)), ...older];
    return data.filter((job) => this.put(job));
  }

  /** Takes the page in that follows the oldest job. @param {VideoPage} page */
  append({ data, has_more: hasMore }) {
    this.hasMore = hasMore;
    for (const job of data) this.put(job);
  }

  /** Takes a job in that was made here. @param {Video} job */
  add(job) {
    this.newcomers.add(job.id);
    this.put(job);
  }

  /**
   * Takes a job in as it is now. A job that has ended does not begin again, whatever an answer says that was on its way.
   *
   * @param {Video} job
   * @returns {boolean}  whether the job has ended since it was seen last
   */
  put(job) {
    if (this.deleted.has(job.id)) return false;
    const before = this.get(job.id);
    if (before && !isUnfinished(before) && isUnfinished(job)) return false;
    this.jobs = [job, ...this.jobs.filter(({ id }) => id !== job.id)].sort((a, b) => (a.id < b.id ? 1 : -1));
    return Boolean(before && isUnfinished(before) && !isUnfinished(job));
  }

  /** @param {string} id */
  remove(id) {
    this.deleted.add(id);
    this.jobs = this.jobs.filter((job) => job.id !== id);
  }

  /**
   * Returns the unfinished jobs, those first that the server should be asked about before the others: the running ones before those
   * that wait, of each the one whose answer is the oldest.
   *
   * @param {(id: string) => number} answeredAt  when the last answer about a job came
   */
  unfinished(answeredAt) {
    const rank = ({ id, status, queue_position: place }) => [status === 'queued' ? 1 : 0, answeredAt(id), place ?? 0];
    const ranked = this.jobs.filter(isUnfinished).map((job) => ({ job, rank: rank(job) }));
    ranked.sort((a, b) => a.rank[0] - b.rank[0] || a.rank[1] - b.rank[1] || a.rank[2] - b.rank[2]);
    return ranked.map(({ job }) => job);
  }
}

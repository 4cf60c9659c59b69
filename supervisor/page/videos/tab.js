// The tab of video jobs: the form, the list, and what keeps the list up to date while it is seen.

import { CLOCK, backoffMs } from '../connection.js';
import { $, say, set } from '../dom.js';
import { endWords, listFailureWords, madeWords } from '../words.js';
import { Card } from './card.js';
import { Follower } from './follower.js';
import { JobList } from './job_list.js';
import { MakeForm } from './make_form.js';
import { listVideos, offersVideos, waitForVideo } from './requests.js';

const UNAUTHORIZED = 401;

export class VideosTab {
  /**
   * @param {object} hooks
   * @param {(isOffered: boolean) => void} hooks.offered  is called when it is known whether the server makes videos
   * @param {() => void} hooks.unauthorized  is called when the server asks for a key
   */
  constructor({ offered, unauthorized }) {
    this.offered = offered;
    this.unauthorized = unauthorized;
    this.isShown = false;
    this.isFailing = false;
    this.list = new JobList();
    /** @type {Map<string, Card>} */
    this.cards = new Map();
    const server = { firstPage: (signal) => listVideos({}, signal), job: waitForVideo };
    this.follower = new Follower(this.list, server, {
      changed: () => this.recover(),
      ended: (job) => say($('jobs-note'), endWords(job)),
      failed: (error) => this.fail(error),
    });
    new MakeForm((job) => this.welcome(job));
    $('jobs-more').onclick = () => this.showMore();
    // Two videos at once are of no use to anybody.
    $('jobs').addEventListener('play', ({ target }) => this.pauseOthers(target), { capture: true });
    document.addEventListener('visibilitychange', () => this.follow());
  }

  /** Asks whether the server makes videos, until it tells. */
  async begin(attempt = 1) {
    try {
      this.offered(await offersVideos());
    } catch {
      CLOCK.after(() => this.begin(attempt + 1), backoffMs(attempt, CLOCK.random()));
    }
  }

  /** Is called when the tab begins or ceases to be shown. */
  show(isShown) {
    this.isShown = isShown;
    if (!isShown) this.pauseOthers(null);
    this.follow();
  }

  /** Goes on with a key that the user has given. */
  retry() {
    this.follower.stop();
    this.follow();
  }

  follow() {
    if (this.isShown && !document.hidden) this.follower.start();
    else this.follower.stop();
  }

  /** Shows a job that was made here, and follows it. */
  welcome(job) {
    this.list.add(job);
    say($('jobs-note'), madeWords(job));
    this.render();
    this.follower.poll();
  }

  /** Shows what a job has become. */
  take(job) {
    if (this.list.put(job)) say($('jobs-note'), endWords(job));
    this.render();
  }

  /** Takes a job that was deleted out of the list. The focus goes to the one that takes its place. */
  drop(id) {
    const at = this.list.jobs.findIndex((job) => job.id === id);
    this.list.remove(id);
    say($('jobs-note'), 'Deleted.');
    this.render();
    const next = this.list.jobs[at] ?? this.list.jobs.at(-1);
    (next ? this.cards.get(next.id).root.querySelector('.job-actions button') : $('jobs-title')).focus();
  }

  fail(error) {
    if (error.status === UNAUTHORIZED) {
      this.follower.stop();
      this.unauthorized();
    }
    this.isFailing = true;
    say($('jobs-note'), listFailureWords(error));
  }

  /** Shows what the server has told, in the place of a failure. */
  recover() {
    if (this.isFailing) say($('jobs-note'), '');
    this.isFailing = false;
    this.render();
  }

  async showMore() {
    set($('jobs-more'), { disabled: true });
    try {
      this.list.append(await listVideos({ after: this.list.last }));
    } catch (error) {
      say($('jobs-note'), listFailureWords(error));
    }
    set($('jobs-more'), { disabled: false });
    this.render();
  }

  pauseOthers(video) {
    for (const { picture } of this.cards.values()) if (picture.video !== video) picture.pause();
  }

  render() {
    const { jobs, hasMore } = this.list;
    const known = new Set(jobs.map(({ id }) => id));
    for (const id of this.cards.keys()) if (!known.has(id)) this.removeCard(id);
    jobs.forEach((job, i) => {
      const card = this.cards.get(job.id) ?? this.addCard(job);
      if ($('jobs').children[i] !== card.root) $('jobs').insertBefore(card.root, $('jobs').children[i] ?? null);
      card.render(job);
    });
    set($('jobs-more'), { hidden: !hasMore });
    set($('jobs-empty'), { hidden: jobs.length > 0 });
    say($('jobs-empty'), 'Nothing yet. Each video is listed here while it is made, and for as long as the server keeps it.');
    say($('jobs-count'), jobs.length ? `${jobs.length}${hasMore ? '+' : ''}` : '');
  }

  addCard(job) {
    const card = new Card(job, {
      made: (another) => this.welcome(another),
      changed: (changed) => this.take(changed),
      deleted: (id) => this.drop(id),
    });
    this.cards.set(job.id, card);
    return card;
  }

  removeCard(id) {
    this.cards.get(id).remove();
    this.cards.delete(id);
  }
}

// The picture of a job: its thumbnail, and in the same place the video while it is watched.

import { icon, make, set } from '../dom.js';
import { elementAddress } from './media.js';

export class Picture {
  /**
   * @param {string} id
   * @param {string} prompt
   * @param {(act: () => Promise<void>) => void} run  runs what the button asks for, and shows why it fails
   */
  constructor(id, prompt, run) {
    this.id = id;
    this.prompt = prompt;
    this.run = run;
    this.root = make('div', 'job-picture');
    this.play = playButton(prompt);
    this.play.onclick = () => run(() => this.watch());
    this.root.append(this.play);
    /** @type {?HTMLVideoElement} */
    this.video = null; // while it is watched, or fetched for that
    this.addresses = [];
    this.isThere = false;
  }

  /** Shows the thumbnail and the button over it, once the job is completed. */
  show(isCompleted) {
    if (!isCompleted || this.isThere) return;
    this.isThere = true;
    set(this.play, { hidden: false });
    const image = make('img');
    image.alt = '';
    // A picture that does not come is not missed: the prompt stands below it.
    this.load(image, 'thumbnail').then(() => this.root.prepend(image), () => {});
  }

  /** Plays the video in the place of the thumbnail. */
  async watch() {
    if (this.video) return;
    const video = this.video = make('video');
    Object.assign(video, { controls: true, autoplay: true, playsInline: true });
    video.setAttribute('aria-label', `Video: ${this.prompt}`);
    try {
      await this.load(video, 'video');
    } catch (error) {
      this.video = null;
      throw error;
    }
    video.onerror = () => this.run(() => this.giveUp());
    this.root.append(video);
    set(this.play, { hidden: true });
    video.focus();
  }

  /** Puts the button back in the place of a video that does not play. */
  async giveUp() {
    this.video.remove();
    this.video = null;
    set(this.play, { hidden: false });
    throw new Error('the video cannot be fetched or played');
  }

  async load(element, variant) {
    const address = await elementAddress(this.id, variant);
    this.addresses.push(address);
    element.src = address;
  }

  pause() {
    this.video?.pause();
  }

  remove() {
    this.pause();
    this.addresses.forEach((address) => URL.revokeObjectURL(address));
  }
}

function playButton(prompt) {
  const button = make('button', 'job-play');
  button.type = 'button';
  button.hidden = true;
  button.dataset.action = 'play';
  button.setAttribute('aria-label', `Play: ${prompt}`);
  button.append(icon('play'));
  return button;
}

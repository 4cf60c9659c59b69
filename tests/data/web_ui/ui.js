// What FastVideo's web UI does with `/ws` and the routes beside it, as far as a server can notice: it asks both probes before it
// connects, handles messages strictly one after the other, appends all media of a rollout to one source buffer in sequence mode, takes
// the media apart by their order, and archives a rollout when it is complete. It never reconnects, and leaves without a close code.
'use strict';

const $ = (id) => document.getElementById(id);
const video = document.querySelector('video');

class Player {
  constructor() {
    this.source = null;
    this.buffer = null;
    this.queue = [];
    this.started = false;
  }

  /** Drops what is buffered. */
  reset() {
    this.source = this.buffer = null;
    this.queue = [];
    this.started = false;
    video.removeAttribute('src');
    video.load();
  }

  async open(mime) {
    if (this.mime === mime && this.source?.readyState === 'open') return;
    if (this.source) throw new Error(`another mime: ${mime}`);
    this.mime = mime;
    this.source = new MediaSource();
    video.src = URL.createObjectURL(this.source);
    await new Promise((opened) => { this.source.onsourceopen = opened; });
    this.buffer = this.source.addSourceBuffer(mime);
    this.buffer.mode = 'sequence';
    this.buffer.onupdateend = () => this.append();
  }

  push(bytes) {
    this.queue.push(bytes);
    this.append();
  }

  append() {
    if (!this.buffer || this.buffer.updating) return;
    if (this.queue.length) this.buffer.appendBuffer(this.queue.shift());
    else if (this.ending && this.source.readyState === 'open') this.source.endOfStream();
    if (!this.started && video.buffered.length && video.buffered.end(0) >= 1) this.play();
  }

  play() {
    this.started = true;
    video.play();
  }

  end() {
    this.ending = true;
    this.append();
    if (!this.started) this.play();
  }
}

class Ui {
  constructor() {
    this.socket = null;
    this.player = new Player();
    this.segments = []; // of this rollout: the messages of each
    this.window = [];
    this.texts = []; // all that came, without media
    this.rollouts = 0; // that are complete
    this.inProject = false;
    this.busy = false;
    this.film = null;
    this.work = Promise.resolve();
  }

  notice(words) {
    $('notice').textContent = words;
  }

  /** A text: an edit of the project that there is, else a new one. */
  submit(text) {
    if (!this.inProject) return this.begin({ initial_rollout_prompt: text, preset_id: 'custom_editable', preset_label: 'Custom rollout' });
    this.busy = true;
    return this.send({ type: 'rewrite_seed_prompts', rewrite_instruction: text, prompt_window_prompts: this.window });
  }

  async begin(fields) {
    const all = {
      preset_id: null, preset_label: '', curated_prompts: [], initial_rollout_prompt: '', initial_image: null, single_clip_mode: false,
      enhancement_enabled: true, auto_extension_enabled: false, loop_generation_enabled: false, ...fields,
    };
    this.notice('');
    this.inProject = this.busy = true;
    this.window = all.curated_prompts;
    if (this.socket) return this.send({ type: 'project_init_v1', ...all });
    for (const probe of ['/healthz', '/readyz']) {
      const answer = await fetch(probe, { headers: { accept: 'application/json' }, cache: 'no-store' });
      if (!answer.ok) {
        this.inProject = this.busy = false;
        return this.notice((await answer.json()).detail);
      }
    }
    const socket = new WebSocket(`ws://${location.host}/ws`);
    this.socket = socket;
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => this.send({ type: 'session_init_v2', ...all });
    socket.onmessage = ({ data }) => { this.work = this.work.then(() => this.handle(data)); };
    socket.onclose = ({ code }) => { this.work = this.work.then(() => this.closed(code)); };
  }

  send(message) {
    this.socket.send(JSON.stringify(message));
  }

  leave() {
    const { socket } = this;
    Object.assign(socket, { onopen: null, onmessage: null, onclose: null });
    socket.close();
    this.toLobby();
  }

  toLobby() {
    this.socket = null;
    this.inProject = this.busy = false;
    $('place').textContent = $('clock').textContent = '';
  }

  async handle(data) {
    if (typeof data !== 'string') {
      this.segments.at(-1).push(data);
      this.player.push(data);
      return;
    }
    const message = JSON.parse(data);
    this.texts.push(message);
    switch (message.type) {
      case 'queue_status':
        $('place').textContent = message.position > 0 ? `In Queue ${message.position}` : '';
        break;
      case 'gpu_assigned':
        $('place').textContent = '';
        $('clock').textContent = `${message.session_timeout}`;
        break;
      case 'ltx2_stream_start':
        this.player.reset();
        this.player = new Player();
        this.segments = [];
        this.busy = true;
        break;
      case 'seed_prompts_updated':
        this.window = message.prompts;
        break;
      case 'media_init':
        this.segments.push([]);
        await this.player.open(message.mime);
        break;
      case 'ltx2_stream_complete':
        await this.archive();
        break;
      case 'project_idle':
        this.player.reset();
        this.segments = [];
        this.toLobbyOfSession();
        break;
      case 'session_timeout':
        this.notice('Session ended');
        break;
      case 'error':
        if (/replica unavailable/i.test(message.message)) this.leave();
        this.notice(message.message);
        break;
      default:
    }
  }

  toLobbyOfSession() {
    this.inProject = this.busy = false;
    this.film = null;
  }

  /** Takes the rollout as a film: the init segment of the first segment, and the media of all. */
  async archive() {
    this.busy = false;
    if (!this.segments.length) return;
    this.player.end();
    const parts = this.segments.flatMap((messages, i) => (i ? messages.slice(1) : messages));
    this.film = new Blob(parts, { type: 'video/mp4' });
    await keep({ words: this.window.join(' / '), film: this.film });
    await showPast();
    this.rollouts += 1;
  }

  async closed(code) {
    this.code = code;
    if (this.busy) await this.archive();
    this.toLobby();
  }
}

/** The past rollouts, which stay over a reload. */
const opening = new Promise((resolve, reject) => {
  const request = indexedDB.open('past', 1);
  request.onupgradeneeded = () => request.result.createObjectStore('films', { autoIncrement: true });
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

async function keep(entry) {
  const transaction = (await opening).transaction('films', 'readwrite');
  transaction.objectStore('films').add(entry);
  await new Promise((done) => { transaction.oncomplete = done; });
}

async function showPast() {
  const reading = (await opening).transaction('films').objectStore('films').getAll();
  await new Promise((done) => { reading.onsuccess = done; });
  $('past').replaceChildren(...reading.result.map(({ words, film }) => {
    const item = document.createElement('li');
    const button = document.createElement('button');
    button.textContent = words;
    button.onclick = () => {
      const replay = document.createElement('video');
      Object.assign(replay, { muted: true, autoplay: true, loop: true, src: URL.createObjectURL(film) });
      item.append(replay);
    };
    item.append(button);
    return item;
  }));
}

const ui = new Ui();
showPast();

$('new-project').onclick = () => ui.send({ type: 'end_project_keep_session' });
$('leave').onclick = () => ui.leave();
$('download').onclick = () => {
  const link = document.createElement('a');
  Object.assign(link, { download: 'rollout.mp4', href: URL.createObjectURL(ui.film) });
  link.click();
};

/** For tests. */
window.fastvideo = {
  ui,
  buffered: () => Array.from(video.buffered, (_, i) => [video.buffered.start(i), video.buffered.end(i)]),
  get fetched() { return performance.getEntriesByType('resource').map(({ name }) => new URL(name).host); },
};

// A clock for tests, which turn it on.

export class Clock {
  constructor() {
    this.time = 0;
    this.timers = new Map();
    this.next = 1;
  }

  now() { return this.time; }
  random() { return 0; }
  cancel(timer) { this.timers.delete(timer); }
  after(run, ms) {
    this.timers.set(this.next, { run, at: this.time + ms });
    this.next += 1;
    return this.next - 1;
  }

  advance(ms) {
    this.time += ms;
    for (const [id, { run, at }] of [...this.timers]) {
      if (at > this.time || !this.timers.delete(id)) continue;
      run();
    }
  }
}

// The animation behind an empty stage: a field of noise that settles with the denoise steps.

import { $, prefersStill } from './dom.js';

export class LatentField {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext('2d');
    this.image = this.context.createImageData(canvas.width, canvas.height);
    this.target = this.noise = 0.2; // 1 is all noise, 0 is none
    this.draw(0);
    setInterval(() => {
      if (!document.hidden && !prefersStill() && $('stage').dataset.view !== 'media') this.draw(performance.now() / 1000);
    }, 80);
  }

  draw(t) {
    const { width, height } = this.canvas;
    this.noise += (this.target - this.noise) * 0.15;
    const pixels = this.image.data;
    for (let y = 0, at = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1, at += 4) {
        const u = x / width, v = y / height;
        const warm = 0.5 + 0.5 * Math.sin(4.1 * u + 1.7 * Math.sin(2.3 * v + t * 0.21) + t * 0.17);
        const cold = 0.5 + 0.5 * Math.sin(3.2 * v - 2.6 * u + 1.3 * Math.sin(3.1 * u - t * 0.13) + 2);
        const bright = (Math.random() - 0.5) * 110 * this.noise;
        const grain = () => bright + (Math.random() - 0.5) * 60 * this.noise;
        const lime = Math.max(0, warm * cold - 0.45) * 1.6;
        pixels[at] = 16 + 165 * warm * (1 - cold) + 120 * lime + grain();
        pixels[at + 1] = 16 + 60 * warm * (1 - cold) + 70 * cold + 140 * lime + grain();
        pixels[at + 2] = 22 + 30 * warm * (1 - cold) + 120 * cold * (1 - lime) + grain();
        pixels[at + 3] = 255;
      }
    }
    this.context.putImageData(this.image, 0, 0);
  }
}

// A picture of both voices: two soft rings around the button, that of the user outside, that of the model inside.

const POINTS = 96;
const BANDS = 24; // of the spectrum, mirrored left and right

export class Orb {
  constructor(canvas) {
    this.canvas = canvas;
    this.paint = canvas.getContext("2d");
    this.rings = [
      { name: "user", base: 0.8, swing: 0.17, level: 0, shape: new Float32Array(BANDS) },
      { name: "model", base: 0.66, swing: 0.17, level: 0, shape: new Float32Array(BANDS) },
    ];
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    this.running = false;
    new ResizeObserver(() => this.measure()).observe(canvas);
    this.measure();
  }

  measure() {
    const side = Math.round(this.canvas.clientWidth * Math.min(2, devicePixelRatio)) || 1;
    if (this.canvas.width !== side) this.canvas.width = this.canvas.height = side;
    this.draw();
  }

  // The colours that the style sheet has now.
  colours() {
    const style = getComputedStyle(this.canvas);
    for (const ring of this.rings) ring.colour = style.getPropertyValue(`--${ring.name}`).trim() || "#888";
    this.draw();
  }

  // Follow two analysers (the user's, the model's) until `stop`.
  start(analysers) {
    this.rings.forEach((ring, i) => (ring.analyser = analysers[i]));
    this.spectrum = new Uint8Array(analysers[0].frequencyBinCount);
    if (this.running) return;
    this.running = true;
    const step = () => {
      if (!this.running) return;
      this.follow();
      this.draw();
      requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  stop() {
    this.running = false;
    for (const ring of this.rings) {
      ring.analyser = null;
      ring.level = 0;
      ring.shape.fill(0);
    }
    this.draw();
  }

  follow() {
    for (const ring of this.rings) {
      ring.analyser.getByteFrequencyData(this.spectrum);
      let sum = 0;
      for (let band = 0; band < BANDS; band++) {
        const value = Math.max(0, this.spectrum[2 + band * 3] / 255 - 0.15) / 0.85; // up to about 7 kHz
        ring.shape[band] += (value - ring.shape[band]) * 0.3;
        sum += value;
      }
      ring.level += (Math.min(1, (2.5 * sum) / BANDS) - ring.level) * 0.2;
    }
  }

  draw() {
    const { paint, canvas } = this, half = canvas.width / 2;
    paint.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.rings[0].colour) return;
    for (const ring of this.rings) {
      const swing = this.calm.matches ? 0 : ring.swing;
      paint.beginPath();
      const at = (k) => {
        const turn = (k % POINTS) / POINTS, side = Math.abs(1 - 2 * turn); // 1 above, 0 below, alike on both sides
        const place = side * (BANDS - 1), low = Math.floor(place), high = Math.min(BANDS - 1, low + 1);
        const shape = ring.shape[low] + (place - low) * (ring.shape[high] - ring.shape[low]);
        const radius = half * (ring.base + swing * (0.35 * ring.level + 0.65 * shape));
        const angle = 2 * Math.PI * turn - Math.PI / 2 + Math.PI;
        return [half + radius * Math.cos(angle), half + radius * Math.sin(angle)];
      };
      let [x, y] = at(POINTS - 1);
      let [a, b] = at(0);
      paint.moveTo((x + a) / 2, (y + b) / 2);
      for (let k = 0; k < POINTS; k++) {
        [x, y] = [a, b];
        [a, b] = at(k + 1);
        paint.quadraticCurveTo(x, y, (x + a) / 2, (y + b) / 2);
      }
      paint.closePath();
      paint.globalAlpha = 1;
      paint.globalCompositeOperation = "destination-out"; // rings do not shine through each other
      paint.fill();
      paint.globalCompositeOperation = "source-over";
      paint.fillStyle = paint.strokeStyle = ring.colour;
      paint.globalAlpha = 0.1 + 0.22 * ring.level;
      paint.fill();
      paint.globalAlpha = 0.35 + 0.6 * ring.level;
      paint.lineWidth = Math.max(1, half * (0.008 + 0.012 * ring.level));
      paint.stroke();
    }
    paint.globalAlpha = 1;
  }
}

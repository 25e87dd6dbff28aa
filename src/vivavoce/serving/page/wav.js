// A recording of both sides: two channels of 16 bits, the user left, the model right.

const MOST = 2 ** 30; // bytes, three hours; what comes then is left out

export class Recording {
  constructor(rate) {
    this.rate = rate;
    this.parts = [];
    this.bytes = 0;
  }

  // Pairs of samples, Int16Array.
  add(samples) {
    if (this.full) return;
    this.parts.push(samples);
    this.bytes += samples.byteLength;
  }

  get full() {
    return this.bytes >= MOST;
  }

  get seconds() {
    return this.bytes / (4 * this.rate);
  }

  // The wav file.
  blob() {
    const header = new DataView(new ArrayBuffer(44));
    const text = (at, letters) => [...letters].forEach((letter, i) => header.setUint8(at + i, letter.charCodeAt(0)));
    text(0, "RIFF");
    header.setUint32(4, 36 + this.bytes, true);
    text(8, "WAVEfmt ");
    header.setUint32(16, 16, true);
    header.setUint16(20, 1, true); // PCM
    header.setUint16(22, 2, true); // channels
    header.setUint32(24, this.rate, true);
    header.setUint32(28, 4 * this.rate, true);
    header.setUint16(32, 4, true);
    header.setUint16(34, 16, true);
    text(36, "data");
    header.setUint32(40, this.bytes, true);
    return new Blob([header, ...this.parts], { type: "audio/wav" });
  }
}

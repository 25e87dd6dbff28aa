// The microphone and the loudspeaker as streams at the server's rate, and what one can read off them.
//
//   microphone -> gate (mute) -> capture -> pieces for the server
//                     |  \-> analyser, recorder (left)
//   the server's pieces -> playback -> loudspeaker, analyser, recorder (right)

export const RATE = 24000;
const START = 5000; // ms that the device may take

export class Sound {
  // Callbacks: piece({samples, level, at}), played({position, at, waiting, margin, gaps, levels}), recorded()
  // while there is a recording, lost() when the microphone goes away, paused(bool) when the browser stops the sound or
  // lets it go on.
  constructor(callbacks) {
    this.on = callbacks;
    this.stream = this.context = this.gate = null;
    this.muted = false;
  }

  // Ask for the microphone and start the audio thread; throws what getUserMedia throws, or errors named
  // NoWorklets and NoLoudspeaker.
  async open(wishes) {
    this.context = new AudioContext({ latencyHint: "interactive" });
    try {
      await this.begin(wishes);
    } catch (error) {
      await this.close();
      throw error;
    }
  }

  async begin(wishes) {
    const { context } = this;
    context.resume(); // in the click that started it; some browsers fulfil this only once there is a microphone
    const stream = listen(wishes);
    stream.catch(() => {}); // thrown below, where it is waited for
    try {
      await this.build(context);
      await this.setSpeaker(wishes.speaker);
      this.plug(await stream);
      await Promise.race([context.resume(), new Promise((late) => setTimeout(late, START))]);
      if (this.context && context.state !== "running") {
        throw Object.assign(new Error("the audio thread does not run"), { name: "NoLoudspeaker" });
      }
    } catch (error) {
      stream.then(release, () => {});
      throw error;
    }
  }

  async build(context) {
    try {
      await context.audioWorklet.addModule(new URL("worklets.js", import.meta.url));
    } catch {
      throw Object.assign(new Error("the audio thread's files cannot be loaded"), { name: "NoWorklets" });
    }
    this.gate = new GainNode(context, { channelCount: 1, channelCountMode: "explicit" });
    this.capture = this.worklet(context, "capture", [1, 0], (data) => this.on.piece(data));
    this.playback = this.worklet(context, "playback", [0, 1], (data) => this.on.played(data));
    this.recorder = this.worklet(context, "recorder", [2, 0], (data) => this.recorded(data));
    this.ears = new AnalyserNode(context, { fftSize: 512, smoothingTimeConstant: 0.5 });
    this.voice = new AnalyserNode(context, { fftSize: 512, smoothingTimeConstant: 0.5 });
    this.gate.connect(this.capture);
    this.gate.connect(this.ears);
    this.gate.connect(this.recorder, 0, 0);
    this.playback.connect(this.voice);
    this.playback.connect(this.recorder, 0, 1);
    this.playback.connect(context.destination);
    context.onstatechange = () => this.context && this.on.paused(context.state !== "running");
    this.mute(this.muted);
  }

  worklet(context, name, [inputs, outputs], heard) {
    const sides = { numberOfInputs: inputs, numberOfOutputs: outputs, channelCount: 1, channelCountMode: "explicit" };
    if (outputs) sides.outputChannelCount = [1];
    const node = new AudioWorkletNode(context, name, { ...sides, processorOptions: { rate: RATE } });
    node.port.onmessage = ({ data }) => heard(data);
    return node;
  }

  plug(stream) {
    if (!this.context) return release(stream); // hung up meanwhile
    this.source?.disconnect();
    if (this.stream) release(this.stream);
    this.stream = stream;
    this.source = new MediaStreamAudioSourceNode(this.context, { mediaStream: stream });
    this.source.connect(this.gate);
    const [track] = stream.getAudioTracks();
    track.onended = () => stream === this.stream && this.on.lost();
  }

  // Another microphone, or the same with other wishes, while one talks.
  async setMicrophone(wishes) {
    const wish = (this.wish = {});
    if (!this.context) return;
    const stream = await listen(wishes);
    if (wish === this.wish) this.plug(stream);
    else release(stream); // something else was wished for meanwhile
  }

  // "" is the system's loudspeaker.
  async setSpeaker(id) {
    if (this.context && speakersCanBeChosen()) await this.context.setSinkId(id || "").catch(() => {});
  }

  // While muted the server gets silence, so that its clock goes on.
  mute(muted) {
    this.muted = muted;
    if (this.gate) this.gate.gain.setTargetAtTime(muted ? 0 : 1, this.gate.context.currentTime, 0.005);
  }

  // A piece of the server's stream, Int16Array.
  play(samples) {
    this.playback?.port.postMessage({ samples }, [samples.buffer]);
  }

  flush() {
    this.playback?.port.postMessage({ flush: true });
  }

  // Both sides go into `recording` until `stopRecording`, which is fulfilled once everything is in it.
  record(recording) {
    this.recording = recording;
    this.recorder?.port.postMessage({ on: true });
  }

  async stopRecording() {
    if (!this.recorder || !this.recording) return;
    await new Promise((done) => {
      this.recordingDone = done;
      this.recorder.port.postMessage({ on: false });
      setTimeout(done, 1000); // an audio thread that was stopped says nothing
    });
    this.recording = null;
  }

  recorded({ samples, last }) {
    this.recording?.add(samples);
    if (last) this.recordingDone?.();
    else this.on.recorded();
  }

  // Seconds that the devices themselves need.
  delays() {
    const settings = this.stream?.getAudioTracks()[0].getSettings() ?? {};
    return {
      microphone: settings.latency || this.context?.baseLatency || 0,
      speaker: this.context?.outputLatency || this.context?.baseLatency || 0,
    };
  }

  resume() {
    return this.context?.resume();
  }

  async close() {
    const { context, stream } = this;
    this.context = this.stream = this.source = this.gate = this.playback = this.recorder = null;
    if (stream) release(stream);
    if (context && context.state !== "closed") await context.close();
  }
}

export function speakersCanBeChosen() {
  return "setSinkId" in AudioContext.prototype;
}

// {microphones, speakers}: [{id, label}]; labels are empty until the microphone was allowed.
export async function devices() {
  const found = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
  const of = (kind) =>
    found.filter((one) => one.kind === kind && one.deviceId).map(({ deviceId, label }) => ({ id: deviceId, label }));
  return { microphones: of("audioinput"), speakers: of("audiooutput") };
}

async function listen({ microphone, echoCancellation, noiseSuppression, autoGainControl }) {
  const audio = { echoCancellation, noiseSuppression, autoGainControl, channelCount: { ideal: 1 } };
  if (microphone) audio.deviceId = { exact: microphone };
  try {
    return await navigator.mediaDevices.getUserMedia({ audio });
  } catch (error) {
    if (!microphone || !["OverconstrainedError", "NotFoundError"].includes(error.name)) throw error;
    return listen({ echoCancellation, noiseSuppression, autoGainControl }); // the chosen one is gone
  }
}

function release(stream) {
  for (const track of stream.getTracks()) {
    track.onended = null;
    track.stop();
  }
}

"""Browsers call by WebRTC, as OpenAI's guide has it: plain RTCPeerConnection, and the published agents' library.

The microphone asks the recorded question of `conftest` again and again.
"""

import http.server
import threading
from pathlib import Path

import pytest

from serving.test_realtime_clients import environment
from serving.waiting import nobody_left

BUNDLE = "node_modules/@openai/agents-realtime/dist/bundle/openai-realtime-agents.umd.js"
CALL = """(async () => {
  const pc = new RTCPeerConnection();
  const audio = document.createElement('audio');
  audio.autoplay = true;
  pc.ontrack = (event) => { audio.srcObject = event.streams[0]; window.remote = event.streams[0]; };
  const microphone = await navigator.mediaDevices.getUserMedia({ audio: true });
  pc.addTrack(microphone.getTracks()[0], microphone);
  const channel = pc.createDataChannel('oai-events');
  window.events = [];
  channel.onmessage = (event) => window.events.push(JSON.parse(event.data));
  await pc.setLocalDescription(await pc.createOffer());
  const form = new FormData();
  form.set('sdp', pc.localDescription.sdp);
  form.set('session', JSON.stringify({ type: 'realtime', model: 'tone' }));
  const answer = await fetch('URL/v1/realtime/calls', {
    method: 'POST', headers: { Authorization: 'Bearer local' }, body: form });
  await pc.setRemoteDescription({ type: 'answer', sdp: await answer.text() });
  Object.assign(window, { pc, channel, place: answer.headers.get('Location') });
  return answer.status;
})()"""
LISTEN = """(() => {
  const context = new AudioContext(), analyser = new AnalyserNode(context, { fftSize: 32768 });
  context.resume();
  context.createMediaStreamSource(window.remote).connect(analyser);
  window.tones = [];
  const bins = new Float32Array(analyser.frequencyBinCount);
  window.listening = setInterval(() => {
    analyser.getFloatFrequencyData(bins);
    let at = 0;
    bins.forEach((level, i) => { if (level > bins[at]) at = i; });
    if (bins[at] > -40) window.tones.push(at * context.sampleRate / analyser.fftSize);
  }, 50);
  return true;
})()"""
KINDS = "window.events.map((event) => event.type)"


class Blank(http.server.BaseHTTPRequestHandler):
    """A page with nothing on it, of another origin than the server's."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><link rel=icon href=data:,><title>caller</title>")

    def log_message(self, *told):
        pass


@pytest.fixture
def blank():
    """The address of such a page."""
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Blank)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}/"
    made.shutdown()
    made.server_close()


def test_a_page_calls(serve, open_page, blank):
    """Of another origin of this machine; what the browser's clock and buffers make of the sound is still 440 Hz."""
    port, server = serve("tone", dialects=("realtime",))
    page = open_page(blank, ready=False)
    assert page.evaluate(CALL.replace("URL", f"http://127.0.0.1:{port}"), gesture=True) == 201
    assert page.evaluate("window.place").startswith("/v1/realtime/calls/rtc_")
    page.wait("window.remote && window.events.length")
    page.evaluate(LISTEN, gesture=True)
    page.wait("window.events.some((event) => event.type === 'output_audio_buffer.stopped')", 60)
    kinds = page.evaluate(KINDS)
    assert kinds[0] == "session.created" and "response.output_audio.delta" not in kinds
    assert kinds.index("response.content_part.added") < kinds.index("output_audio_buffer.started")
    page.wait("window.tones.length > 5")
    tones = page.evaluate("window.tones")
    assert sorted(abs(tone - 440) for tone in tones)[len(tones) // 2] < 5, tones
    (told,) = server.core.sessions()
    assert told["dialect"] == "webrtc" and told["frames"] > 20
    page.evaluate("window.channel.send(JSON.stringify({ type: 'input_audio_buffer.append', audio: 'AAAA' }))")
    page.wait("window.events.some((event) => event.error && event.error.code === 'append_not_supported')")
    page.evaluate("window.pc.close()")
    nobody_left(server)


def test_openais_agents_call(serve, open_page, blank):
    """`OpenAIRealtimeWebRTC` of the published bundle: connects, hears an answer, is hung up."""
    bundle = Path(environment("agents")) / BUNDLE
    port, server = serve("tone", dialects=("realtime",))
    page = open_page(blank, ready=False)
    page.evaluate(bundle.read_text(encoding="utf-8") + "; true")
    page.evaluate(
        f"""(async () => {{
          const agents = globalThis.OpenAIAgentsRealtime;
          const transport = new agents.OpenAIRealtimeWebRTC({{ useInsecureApiKey: true,
            audioElement: document.createElement('audio') }});
          const agent = new agents.RealtimeAgent({{ name: 'caller', instructions: 'be brief' }});
          const session = new agents.RealtimeSession(agent, {{ transport, model: 'tone' }});
          window.events = [];
          transport.on('*', (event) => window.events.push(event));
          window.history_ = [];
          session.on('history_updated', (items) => {{ window.history_ = items; }});
          await session.connect({{ apiKey: 'local', url: 'http://127.0.0.1:{port}/v1/realtime/calls' }});
          Object.assign(window, {{ session, transport }});
        }})()""",
        gesture=True,
    )
    assert page.evaluate("window.transport.callId").startswith("rtc_")
    page.wait("window.events.some((event) => event.type === 'output_audio_buffer.stopped')", 60)
    said = "window.history_.filter((item) => item.role === 'assistant').map((item) => item.content[0].transcript || '')"
    page.wait(f"{said}.some((text) => /^tone number \\d ends$/.test(text))")  # one that was not interrupted
    assert page.evaluate("window.history_.some((item) => item.role === 'user')")
    page.evaluate("window.session.interrupt(), true")  # a cancel if there is one, and output_audio_buffer.clear
    page.wait("window.events.some((event) => event.type === 'output_audio_buffer.cleared')")
    page.evaluate("window.session.close(), true")
    nobody_left(server)

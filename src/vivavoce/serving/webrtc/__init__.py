"""WebRTC calls of the Realtime dialect, by aiortc (extra `webrtc`): sound by tracks, events by a data channel.

`offers` reads what a client offers, `peer` is aiortc's side, `ears` and `voice` are the sound in and out, `channel` the
events, `call` one call from its offer to its end, `calls` all of a server's and their routes' handlers.
"""

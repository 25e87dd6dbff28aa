"""How a Realtime session ends, as clients are told: the close code of a WebSocket, a code and words."""

from vivavoce.serving.realtime.session import RealtimeSession
from vivavoce.serving.realtime.settings import Invalid

ENDED = {  # why a conversation was closed -> close code, the error's code, words
    "closed": (1000, None, ""),
    "expired": (1000, "session_expired", "this session has lasted as long as sessions may: open another one"),
    "idle": (1000, "session_idle", "nothing was sent for too long, so the session was closed: open another one"),
    "slow_client": (1008, "slow_client", "this client does not read what is sent to it"),
    "shutdown": (1012, "stopping", "the server is being stopped: connect to another one, or later"),
    "failed": (1011, "failed", "the model has failed"),
    "lost": (1008, "session_lost", "the connection was lost for too long"),
}


def ending_of(session: RealtimeSession) -> tuple[int, Invalid | None]:
    """The close code of a session that is over, and what is wrong; None where nothing is."""
    reason = session.conversation.reason or "closed"
    code, name, words = ENDED.get(reason, ENDED["closed"])
    if name is None:
        return code, None
    failure = session.conversation.error or session.core.lockstep.failed
    words = f"{words}: {failure}" if reason == "failed" and failure else words
    return code, Invalid(name, words, kind="server_error" if code in (1011, 1012) else "invalid_request_error")

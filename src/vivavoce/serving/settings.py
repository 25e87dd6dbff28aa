"""What a server allows and how it keeps time: one place for every limit."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """Seconds, unless a name says otherwise.

    Keeping time:
    - `gap`: how long a conversation's input may stay away before its silence is heard as silence; before that its row
      is held, and its skipped frames are counted;
    - `slack`: frames of input that may wait (a client sends in pieces of its own). With more waiting, a row takes up
      to `catch_up` further steps a frame, as long as all steps together need less than `share` of the frame;
    - `stale`: where the machine was too slow, so that frames of the clock were lost: with so much input waiting silence
      is passed over, with twice as much sound too, and counted; what was sent ahead is heard whole;
    - `ring`: input that waits at most; then the oldest is dropped, and counted;
    - `lead`: how far output may be ahead of what has been heard of it. While more waits, silent frames are left out;
    - `outbox`: output that a client may leave unread before it is dropped as too slow.

    Admission: `rows` in lockstep (0: as many as a measured step does in `share` of the frame, at most `most_rows`);
    `queue` waiting clients, each for at most `queue_wait`; `session`: a conversation's longest time; `idle`: longest
    time without input; `grace`: how long a dropped connection may be resumed, `crowded`: how long while others wait.
    """

    gap: float = 0.5
    slack: int = 2
    catch_up: int = 3
    share: float = 0.5
    stale: float = 0.5
    ring: float = 30.0
    lead: float = 0.4
    outbox: float = 5.0
    rows: int = 0
    most_rows: int = 64
    queue: int = 64
    queue_wait: float = 120.0
    session: float = 1800.0
    idle: float = 120.0
    grace: float = 30.0
    crowded: float = 5.0
    warn: float = 30.0  # before `session` is over

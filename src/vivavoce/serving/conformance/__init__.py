"""Checks of any server against the protocols: what is sent, what must come, and what each event's verdict is.

`rules` has what a check is, `target` the server that is looked at, `link` a WebSocket that notes every event, `shapes`
what an event must look like; each dialect has its checks, and its events where it has many; `runner` runs them all, and
`table` prints what was found.
"""

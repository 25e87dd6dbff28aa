"""Turn-taking and full-duplex conversation on a frame clock."""

from vivavoce.dialogue.duplex import DuplexOutput, DuplexRows, DuplexSession
from vivavoce.dialogue.turns import Piece, Reply, reply_pieces, whole_reply

__all__ = ["DuplexOutput", "DuplexRows", "DuplexSession", "Piece", "Reply", "reply_pieces", "whole_reply"]

"""Watchdog: heartbeats between ranks, so that all ranks end with one message if one dies or hangs."""

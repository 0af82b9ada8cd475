"""Receive a multifd migration, whose pages arrive over channels of their own.

`gathering` lets the connections of one source in; each channel is read by a process of its own
(`channel`), straight into guest memory (`memory`); `sync` keeps them in step with the main channel.
"""

"""Fetching, so that no site is burdened and no private address is reached.

`addresses` says which address may be connected to, and is asked for every connection at the last moment. `schedule`
decides whose turn it is: per host a queue, a limit, a pause; it does no I/O. `client` makes one request, one hop.
`robots` and `optout` are what sites ask for. `fetcher` ties them together: jobs in, files or verdicts out.
"""

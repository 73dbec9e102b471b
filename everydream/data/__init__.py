"""From folders to batches.

    scan -> index -> (mix, buckets) -> plan -> sample -> loader

`scan` looks at every image once and writes what matters into the columns of an `Index`, rejections included. `mix` and
`buckets` say how often and in which shape each record is seen; `plan` turns that into one epoch's order, arrays only.
`sample` makes one draw from (record, nth, seed), and `loader` does so ahead of the training loop. No room state.
"""

"""The notifier: a small process on every machine that can be taken away. It asks the cloud's metadata service what is announced about the machine, and
publishes that, with the deadline, as one condition of the Node object. For clusters that have nothing that does so.

    settings     command line
    web          one HTTP session for metadata: no proxies, no redirects, bounded in size and time
    aws, gcp, azure   one file per cloud: what it says -> NodeNotice (pure `read_*` functions, and the calls)
    standing     what stands, after what stood before (pure)
    condition    NodeNotices <-> the condition (pure)
    kube         the one or two calls to the API server
    watching     the loops
    metrics, serving, __main__

Belongs here: reading one machine's metadata and saying it. Does not belong here: deciding what follows; that is the operator's. No torch, no store.
"""

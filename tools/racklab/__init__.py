"""The virtual rack: devices as network namespaces with a rate, a loss and a share of a processor."""
